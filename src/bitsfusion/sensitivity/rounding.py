"""A layer's weight as it is with few bits, before any training."""

from __future__ import annotations

from torch import Tensor

from bitsfusion.errors import InputError
from bitsfusion.kernels.scale import exact_scale
from bitsfusion.numerics import ScaleInit, dequantize, initial_scale, quantize


def scale_of(name: str, weight: Tensor, bits: int, method: ScaleInit) -> Tensor:
    """One scale an output channel of `weight` [out, ...]: [out] float32.

    Raises:
        InputError: the weight has no scale; the message begins with the layer's `name`.
    """
    try:
        if method is ScaleInit.EXACT:
            return exact_scale(weight.detach().flatten(1).float(), bits)
        return initial_scale(weight, bits, method)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def rounded(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`weight` on its `bits` levels, in its own dtype."""
    return dequantize(quantize(weight, scale, bits), scale, weight.dtype)
