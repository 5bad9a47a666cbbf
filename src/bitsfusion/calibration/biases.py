"""A layer's bias after its weights were rounded."""

from __future__ import annotations

from torch import Tensor


def corrected_bias(weight: Tensor, input_mean: Tensor, output_mean: Tensor) -> Tensor:
    """b = E[y] - Q E[x]: with it the rounded layer's mean output is the one aimed at.

    Args:
        weight: [out, n], rounded.
        input_mean: [n] of the inputs that the layer will see.
        output_mean: [out] of the outputs aimed at, the old bias counted in.

    Returns:
        [out] float32.
    """
    return (output_mean - weight.to(input_mean.dtype) @ input_mean).float()
