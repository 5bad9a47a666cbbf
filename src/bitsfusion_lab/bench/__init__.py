"""Size, fidelity, load time, memory and speed of a packed folder beside the dense model and other quantizers."""
