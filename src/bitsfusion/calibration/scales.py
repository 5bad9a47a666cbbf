"""One scale a channel, of least output error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitsfusion.calibration.factor import Factored
from bitsfusion.numerics import dequantize, half_levels, quantize

FACTORS = (0.7, 0.85, 1.0, 1.15, 1.3)
"""Multiples of the weights' own best scale, tried one after another; what follows refits it, so a few are enough."""

STRONGEST = 2048
"""Columns, those of most input energy, by which the scale is chosen among its multiples."""


def output_error(difference: Tensor, moments: Tensor) -> Tensor:
    """d H d^T of each row d: the squared output error that a difference of weights makes.

    Args:
        difference: [out, n].
        moments: [n, n].

    Returns:
        [out].
    """
    return ((difference @ moments) * difference).sum(1)


def scale_by_output(target: Tensor, factor: Factored, start: Tensor, bits: int) -> Tensor:
    """The scale among `FACTORS` times `start` whose rounded weights have the least output error, each channel alone.

    Args:
        target: [out, n], the weights aimed at.
        factor: of the inputs' second moments; `STRONGEST` columns are looked at.
        start: [out] float32.
        bits: 1 to 8.

    Returns:
        [out] float32.
    """
    moments = factor.moments
    if target.shape[1] > STRONGEST:
        looked_at = factor.order[-STRONGEST:]
        target, moments = target[:, looked_at], moments[looked_at][:, looked_at]
    best, found = torch.full_like(start, math.inf), start.clone()
    for multiple in FACTORS:
        scale = start * multiple
        rounded = dequantize(quantize(target, scale, bits), scale, target.dtype)
        error = output_error(target - rounded, moments).to(best.dtype)
        found, best = torch.where(error < best, scale, found), torch.minimum(error, best)
    return found


def fitted_scale(codes: Tensor, aimed: Tensor, through: Tensor, scale: Tensor) -> Tensor:
    """The scale of least output error for codes that stay: s = q H t / q H q of each row.

    Args:
        codes: q, [out, n] integers in floating point.
        aimed: t H, [out, n].
        through: q H, [out, n].
        scale: [out], kept where the quotient has no sense or is not positive.

    Returns:
        [out] float32.
    """
    energy, product = (through * codes).sum(1), (aimed * codes).sum(1)
    fitted = product / torch.where(energy > 0, energy, 1)
    return torch.where((energy > 0) & (fitted > 0), fitted, scale.to(fitted.dtype)).float()


def clipped_levels(values: Tensor, divisor: Tensor, bits: int) -> Tensor:
    """clip(round(v / s)), both [out] or [out, n]; s infinite gives level 0."""
    half = half_levels(bits)
    return (values / divisor).round_().clamp_(-half, half)
