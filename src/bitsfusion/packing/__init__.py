"""Levels as bytes: radix packing, entropy coding, and the table of where every bit is."""
