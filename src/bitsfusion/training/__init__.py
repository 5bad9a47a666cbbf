"""Quantization-aware training: Stage I against the full-precision teacher, Stage II on the data (section 4.2)."""
