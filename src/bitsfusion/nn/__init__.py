"""Layers: fake-quantized for training, packed for serving."""
