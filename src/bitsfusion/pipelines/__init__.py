"""A pipeline on disk: which files hold its weights, and loading it."""
