"""Initial scales of a layer (section 4.1): min-max, the paper's alternating optimisation, and the exact optimum."""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor

from bitsfusion.errors import InputError
from bitsfusion.numerics.levels import half_levels
from bitsfusion.numerics.quantizer import rounded

ALTERNATING_STEPS = 10
WIDENING_FACTORS = (1.01, 1.02, 1.03, 1.04)
WIDENING_ERROR = 1.0025
_WIDENING_CHUNK = 1 << 18  # weights rounded at once: what they leave behind stays in cache
_EXACT_CHUNK = 1 << 22  # candidates sorted at once: bounds the memory of the exact search to about 0.2 GB


class ScaleInit(str, Enum):
    """How a scale is found from a full-precision weight."""

    MINMAX = "minmax"
    ALTERNATING = "alternating"
    EXACT = "exact"
    COMPACT = "compact"


def initial_scale(weight: Tensor, bits: int, method: ScaleInit = ScaleInit.EXACT) -> Tensor:
    """One scale per output channel; a channel of zeros gets scale 0.

    Args:
        weight: [out, ...] of any floating dtype.
        bits: 1 to 8.
        method: see `ScaleInit`.

    Returns:
        [out] float32.

    Raises:
        InputError: the weight has no element, or one that is NaN or infinite.
    """
    half = half_levels(bits)
    if weight.dim() < 2 or weight.numel() == 0:
        raise InputError(f"weight: got shape {list(weight.shape)}, wanted [out, in, ...] with at least one element")
    rows = weight.detach().flatten(1).float()
    if not torch.isfinite(rows).all():
        count = int((~torch.isfinite(rows)).sum())
        raise InputError(f"weight: got {count} NaN or infinite values of {rows.numel()}, wanted finite weights")
    if method is ScaleInit.MINMAX:
        return _minmax(rows, half)
    if method is ScaleInit.ALTERNATING:
        return _alternating(rows, half)
    scale = _exact(rows, half)
    return widened(rows, scale, bits) if method is ScaleInit.COMPACT else scale


def widened(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Scales up to 4 % larger, for as little as 0.25 % (0.01 dB) more error than the best ones.

    The error is flat about its minimum while the levels' entropy falls: on Gaussian weights of 1 to 3 bits by about
    0.6 %, which is bytes in a file. Not in the paper.

    Args:
        rows: [out, n] float32.
        scale: [out] float32 of least squared error.
        bits: 1 to 8.

    Returns:
        [out] float32: of the factors 1, 1.01 .. 1.04, each channel's largest one that keeps to the limit.
    """
    chunk = max(1, _WIDENING_CHUNK // rows.shape[1])
    parts = zip(rows.split(chunk), scale.split(chunk), strict=True)
    return torch.cat([_widened(part, part_scale, bits) for part, part_scale in parts])


def _widened(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    limit = _squared_error(rows, scale, bits) * WIDENING_ERROR
    chosen = scale
    for factor in WIDENING_FACTORS:
        chosen = torch.where(_squared_error(rows, scale * factor, bits) < limit, scale * factor, chosen)
    return chosen


def _squared_error(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """[out] float64."""
    return rounded(rows, scale, bits).sub_(rows).square_().sum(1, dtype=torch.float64)


def _minmax(rows: Tensor, half: int) -> Tensor:
    """The largest magnitude falls on the outermost level."""
    return rows.abs().amax(1) / half


def _alternating(rows: Tensor, half: int) -> Tensor:
    """Eq. 5: ten times, levels from the scale, then the least-squares scale from the levels; starts at min-max."""
    scale = _minmax(rows, half)
    levels, products = torch.empty_like(rows), torch.empty_like(rows)
    for _ in range(ALTERNATING_STEPS):
        divisor = torch.where(scale == 0, math.inf, scale)[:, None]
        torch.div(rows, divisor, out=levels).round_().clamp_(-half, half)
        energy = torch.mul(levels, levels, out=products).sum(1)
        fitted = torch.mul(rows, levels, out=products).sum(1) / energy.clamp(min=1)
        scale = torch.where(energy > 0, fitted, scale)
    return scale


def _exact(rows: Tensor, half: int) -> Tensor:
    """The scale of least squared error, exactly. Differs from the paper: no descent, hence no local optimum.

    As the scale shrinks from infinity, weight i steps from level k-1 to k when it passes |w_i| / (k - 1/2).
    Between two such events the levels q stay, the best scale for them is <w, q> / <q, q> and the error is
    |w|^2 - <w, q>^2 / <q, q>. Sorting the events and summing |w_i| and 2k - 1 along them gives that gain
    for every assignment any scale can produce; the largest wins.
    """
    steps = torch.arange(1, half + 1, dtype=torch.float32, device=rows.device)
    chunk = max(1, _EXACT_CHUNK // (rows.shape[1] * half))
    return torch.cat([_best_of_events(part.abs(), steps) for part in rows.split(chunk)])


def _best_of_events(magnitudes: Tensor, steps: Tensor) -> Tensor:
    events = (magnitudes[:, :, None] / (steps - 0.5)).flatten(1)
    order = events.argsort(dim=1, descending=True)
    count = len(steps)
    products = magnitudes.gather(1, order // count).double().cumsum(1)
    energies = (2 * steps - 1)[order % count].double().cumsum(1)
    best = (products.square() / energies).argmax(1, keepdim=True)
    return (products.gather(1, best) / energies.gather(1, best)).squeeze(1).float()
