"""A run: every step of the method in one folder, each done once and resumed after a kill."""
