"""Compares a model with its original: noise errors, pictures and scores."""
