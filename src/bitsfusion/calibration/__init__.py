"""Calibration: codes, scales and biases of least output error, from the model's own activations, without training."""
