"""Metrics of images: error against other images, CLIP score, FID, GenEval, TIFA."""
