"""Which layers of which architecture are quantized, kept at 8 bits or removed, and the published recipes."""
