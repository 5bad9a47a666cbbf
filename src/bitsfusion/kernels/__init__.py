"""Packed layers to weights, and searches over weights, as fast as the machine allows; `reference` is the truth."""
