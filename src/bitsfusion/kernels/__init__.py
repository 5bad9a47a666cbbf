"""Packed layers to weights, and the scale search, as fast as the machine allows; `reference` is the truth.

`available()` says which implementation serves which device. Importing registers the operators `torch.ops.bitsfusion`.
"""

from bitsfusion.kernels import int8, op
from bitsfusion.kernels.dispatch import Implementation, available, note, unpack, unpack_into

__all__ = ["Implementation", "available", "int8", "note", "op", "unpack", "unpack_into"]
