"""A layer's weight with few bits, before any training."""

from __future__ import annotations

from torch import Tensor

from bitsfusion.numerics import dequantize, quantize


def rounded(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`weight` on its `bits` levels, in its own dtype."""
    return dequantize(quantize(weight, scale, bits), scale, weight.dtype)
