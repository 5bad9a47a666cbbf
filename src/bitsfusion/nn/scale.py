"""Initial scales of a layer: `numerics.initial_scale`, by the compiled search where there is one."""

from __future__ import annotations

from torch import Tensor

from bitsfusion.errors import InputError
from bitsfusion.kernels.scale import exact_scale
from bitsfusion.numerics import ScaleInit, initial_scale, widened


def layer_scale(name: str, weight: Tensor, bits: int, method: ScaleInit) -> Tensor:
    """[out] float32 of a layer's weight [out, in, ...]; see `initial_scale`.

    Raises:
        InputError: names the layer; a weight without elements, or one that is NaN or infinite.
    """
    try:
        if method in (ScaleInit.EXACT, ScaleInit.COMPACT) and weight.dim() > 1:
            rows = weight.detach().flatten(1).float()
            scale = exact_scale(rows, bits)
            return widened(rows, scale, bits) if method is ScaleInit.COMPACT else scale
        return initial_scale(weight.detach(), bits, method)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
