"""A packed folder carried over to what other programs read: dense folders, GGUF, ONNX, a page for the browser."""
