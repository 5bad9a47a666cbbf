"""Uniform quantization with one scale per output channel (Eqs. 1-4), and its straight-through training form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bitsfusion.numerics.levels import half_levels


def _per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


def _levels(weight: Tensor, scale: Tensor, half: int) -> Tensor:
    """clip(round(w / s)) in float32; a channel whose scale is zero gets level 0 everywhere."""
    divisor = _per_channel(torch.where(scale == 0, math.inf, scale), weight)
    return torch.div(weight, divisor).round_().clamp_(-half, half)


def quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The integer level of every weight.

    Args:
        weight: [out, ...], any floating dtype (computed in float32).
        scale: [out] float32, one per output channel, zero or positive.
        bits: 1 to 8.

    Returns:
        int16 of `weight`'s shape, from -2^(b-1) to 2^(b-1).
    """
    return _levels(weight.detach().float(), scale.detach().float(), half_levels(bits)).to(torch.int16)


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """level x scale in float32, then cast: what every reader of a packed layer must reproduce bit for bit.

    Args:
        codes: [out, ...] integers.
        scale: [out] float32.
        dtype: of the result.
    """
    return (codes.float() * _per_channel(scale.float(), codes)).to(dtype)


def rounded(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`weight` [out, ...] on its levels, in its own dtype; see `quantize`."""
    return dequantize(quantize(weight, scale, bits), scale, weight.dtype)


class _FakeQuantize(torch.autograd.Function):
    """Rounding passes the gradient straight through; clipping stops it (section 3.1).

    The scale's gradient is LSQ's (Esser et al., 2020): d(q s)/ds = q - w/s inside the range and q at its
    ends, times 1 / sqrt(N 2^(b-1)) with N the weights a scale serves. The factor keeps the norm of all gradients, by
    which they are clipped, from being dominated by the scales. How far a scale moves is up to the optimizer: AdamW
    divides the factor away again (`training/optimizer.py`).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, half: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.half = half
        return _levels(weight, scale, half).mul_(_per_channel(scale, weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, scale = ctx.saved_tensors
        return *_gradients(weight, scale, ctx.half, grads[0]), None


def _gradients(weight: Tensor, scale: Tensor, half: int, grad: Tensor) -> tuple[Tensor, Tensor]:
    ratio = torch.div(weight, _per_channel(torch.where(scale == 0, math.inf, scale), weight))
    clipped = ratio.clamp(-half, half)
    inside = clipped == ratio
    slope = clipped.round_().sub_(ratio.mul_(inside))
    factor = 1 / math.sqrt(max(1, weight[0].numel()) * half)
    grad_scale = slope.mul_(grad).flatten(1).sum(1) * factor
    return grad * inside, grad_scale


@torch.no_grad()
def fake_quantize_gradients(weight: Tensor, scale: Tensor, bits: int, grad: Tensor) -> tuple[Tensor, Tensor]:
    """What `fake_quantize` gives back to weight and scale for the gradient of its result; see `_FakeQuantize`.

    Args:
        weight, scale, bits: as `fake_quantize`.
        grad: of `weight`'s shape, float32.
    """
    return _gradients(weight, scale, half_levels(bits), grad)


def fake_quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`dequantize(quantize(weight))`, bit for bit, with gradients for both weight and scale.

    Args:
        weight: [out, ...] float32.
        scale: [out] float32.
        bits: 1 to 8.

    Returns:
        float32 of `weight`'s shape.
    """
    result: Tensor = _FakeQuantize.apply(weight, scale, half_levels(bits))
    return result
