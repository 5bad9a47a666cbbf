"""A run: all steps of the method in one folder; each is done once, and resumes after a kill."""
