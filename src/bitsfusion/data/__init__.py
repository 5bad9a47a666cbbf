"""Prompts and captioned images."""
