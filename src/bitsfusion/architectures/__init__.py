"""Which layers of which family of models are quantized, kept at 8 bits or removed."""
