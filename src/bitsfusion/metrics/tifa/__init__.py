"""TIFA (Hu et al. 2023): how many questions about a caption a model answers rightly from the image drawn of it."""
