"""A packed pipeline as a static page: the packed bytes, graphs without weights, and the scripts that run them."""
