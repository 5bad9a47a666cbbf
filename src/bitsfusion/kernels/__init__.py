"""Packed layers to weights, and the scale search, as fast as the machine allows; `reference` is the truth.

`available()` says which implementation serves which device. Importing registers `torch.ops.bitsfusion.unpack`.
"""

from bitsfusion.kernels import op
from bitsfusion.kernels.dispatch import Implementation, available, note, unpack, unpack_into

__all__ = ["Implementation", "available", "note", "op", "unpack", "unpack_into"]
