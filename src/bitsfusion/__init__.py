"""BitsFusion: mixed-precision weight quantization of diffusion models below two bits."""
