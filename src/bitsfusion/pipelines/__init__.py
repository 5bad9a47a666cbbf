"""A pipeline on disk: which files hold its weights, loading it, and drawing with it."""
