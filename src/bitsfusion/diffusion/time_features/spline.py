"""Curves over time: uniform cubic B-splines, evaluated where the time step is and fitted by least squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TAPS = 4
"""How many control points a value depends on."""


@dataclass(frozen=True)
class Knots:
    """Equal intervals from `start` on, `spacing` time steps each; a curve over them has `intervals` + 3 points."""

    start: int
    spacing: int
    intervals: int

    @property
    def points(self) -> int:
        """Control points of a curve."""
        return self.intervals + TAPS - 1

    @property
    def end(self) -> int:
        """The last time step."""
        return self.start + self.spacing * self.intervals


def spline_weights(timesteps: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    """Which control points decide each value, and by how much.

    Args:
        timesteps: [n], floating; beyond the ends, the first and the last piece are extended.

    Returns:
        indices [n, 4] int64; weights [n, 4] in the dtype of `timesteps`, which add up to 1.
    """
    place = (timesteps - knots.start) / knots.spacing
    first = place.floor().clamp(0, knots.intervals - 1)
    u = place - first
    v = 1 - u
    weights = torch.stack(
        (v**3, 3 * u**3 - 6 * u**2 + 4, 3 * v**3 - 6 * v**2 + 4, u**3),
        dim=1,
    )
    taps = torch.arange(TAPS, device=timesteps.device)
    return first.to(torch.int64)[:, None] + taps, weights / 6


def spline_values(curve: Tensor, timesteps: Tensor, knots: Knots) -> Tensor:
    """[points, k] control points at [n] time steps -> [n, k], computed in the dtype of `timesteps`."""
    indices, weights = spline_weights(timesteps, knots)
    return (curve[indices].to(weights.dtype) * weights[:, :, None]).sum(1)


def fit_spline(values: Tensor, timesteps: Tensor, knots: Knots) -> Tensor:
    """The control points whose curves are nearest to `values` in the sense of least squares.

    Args:
        values: [n, k] float64.
        timesteps: [n] float64, at least one in every interval and `points` in all.

    Returns:
        [points, k] float64.
    """
    indices, weights = spline_weights(timesteps, knots)
    design = torch.zeros(len(timesteps), knots.points, dtype=values.dtype).scatter_(1, indices, weights)
    factor = torch.linalg.cholesky(design.T @ design)
    return torch.cholesky_solve(design.T @ values, factor)
