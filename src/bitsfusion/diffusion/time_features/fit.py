"""Finds the smallest basis that a UNet's time features fit into within a tolerance.

Directions are the leading right singular vectors of the features at all integer steps, less their mean. A trained
model's features are smooth in time and of low rank; those of random weights are neither.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bitsfusion.diffusion.time_features.basis import TimeBasis, basis_features
from bitsfusion.diffusion.time_features.layers import time_layers, time_outputs
from bitsfusion.diffusion.time_features.modulation import time_bits
from bitsfusion.diffusion.time_features.spline import Knots, fit_spline, spline_values
from bitsfusion.errors import InputError
from bitsfusion.numerics import level_bits

TOLERANCE = 0.005
"""Relative error of the features; see `TimeBasis.error`."""

FIRST_STEP = -2
"""Where curves begin: schedulers preconditioned in EDM's way ask for log(sigma) / 4, from -1.6 on."""

SPACINGS = (32, 16, 8, 4, 2, 1)
"""Time steps between knots, the cheapest first."""

EXPECTED_RANK = 18
"""The rank within `TOLERANCE` on the trained models that were measured, where nothing but the shapes is known."""

MODULATION_RANK = 64
"""The same for a transformer's modulation; not measured on a trained model."""

_EXPECTED_SPACING = 2

VALUE_BITS = 16
_SAMPLES = 2  # a time step: curves are fitted and measured at every half step
_MORE_RANKS = 8  # beyond the least that the directions alone ask for


def layer_values(unet: nn.Module) -> int:
    """As how many 16-bit values the time layers count when they stay (Appendix H), at `time_bits`."""
    weights = sum(unet.get_parameter(f"{name}.weight").numel() for name in time_layers(unet))
    return -(-int(level_bits(time_bits(unet)) * weights) // VALUE_BITS)


def expected_basis(channels: int, rank: int = EXPECTED_RANK) -> TimeBasis:
    """A basis on meta in the shape that the features of a trained model, of so many values a step, fit into."""
    knots = _knots(_EXPECTED_SPACING, 1000)
    curve = torch.empty(knots.points, rank, dtype=torch.float16, device="meta")
    mean, directions = curve.new_empty(channels), curve.new_empty(rank, channels)
    return TimeBasis(mean, directions, curve, knots, 0.0)


def fit_time_basis(
    unet: nn.Module, steps: int = 1000, tolerance: float = TOLERANCE, most_values: int | None = None
) -> TimeBasis | None:
    """The basis of the least rank whose features are within `tolerance`, in float16 as it is stored.

    The rank is the least whose error over the integer steps is within the tolerance, the knots then the fewest with
    which it stays so at the integer steps and half-way between them.

    Args:
        unet: a UNet2DConditionModel with its time layers.
        steps: of the noise schedule that it was trained on; the basis covers -2 to `steps`.
        tolerance: largest relative error; see `TimeBasis.error`.
        most_values: of the basis; where not given, as many as the bits of the time layers come to.

    Returns:
        None where no basis within the tolerance takes less than that.

    Raises:
        InputError: not a UNet whose features depend on the step alone, features that are not finite, or arguments out
            of range.
    """
    if steps < 2 or not tolerance > 0:
        raise InputError(f"time basis: got {steps} steps and tolerance {tolerance}, wanted 2 or more, and above 0")
    features, budget = _Features(unet, steps), layer_values(unet) if most_values is None else most_values
    least = features.rank_within(tolerance)
    grids = [_knots(spacing, steps) for spacing in SPACINGS]
    most = min(least + _MORE_RANKS, features.rank, (budget - features.channels) // features.channels)
    if most < least or features.values(least, grids[0]) > budget:
        return None
    directions, coordinates = features.project(most)
    fits = [(knots, fit_spline(coordinates, features.times, knots)) for knots in grids if knots.points < 2 * steps]
    for rank in range(least, most + 1):
        for knots, curve in fits:
            if features.values(rank, knots) > budget:
                break  # those that follow take more
            made, error = features.rounded(directions[:rank], curve[:, :rank], knots, coordinates, tolerance)
            if made is not None and error <= tolerance:
                return made
    return None


def _knots(spacing: int, steps: int) -> Knots:
    return Knots(FIRST_STEP, spacing, -(-(steps - FIRST_STEP) // spacing))


class _Features:
    """The features at every half step, output by output: never all of them in memory."""

    def __init__(self, unet: nn.Module, steps: int) -> None:
        self._unet = unet
        self.times = torch.arange(_SAMPLES * FIRST_STEP, _SAMPLES * steps + 1, dtype=torch.float64) / _SAMPLES
        inside = (self.times >= 0) & (self.times <= steps - 1)
        whole = self.times == self.times.round()
        self._whole, self._between = inside & whole, inside & ~whole
        gram, means = torch.zeros(steps, steps, dtype=torch.float64), []
        for part in self._parts():
            if not bool(torch.isfinite(part).all()):
                raise InputError("time features: got values that are NaN or infinite, wanted finite ones")
            means.append(part[self._whole].mean(0))
            left = part[self._whole] - means[-1]
            gram += left @ left.T
        self._mean = torch.cat(means)
        energy, vectors = torch.linalg.eigh(gram)
        self._energy, self._vectors = energy.flip(0).clamp(min=0), vectors.flip(1)
        self._total = float(self._energy.sum())
        self.channels = self._mean.numel()
        self.rank = int((self._energy > self._total * steps * torch.finfo(torch.float64).eps).sum())

    def values(self, rank: int, knots: Knots) -> int:
        """What a basis takes."""
        return self.channels * (rank + 1) + knots.points * rank

    def rank_within(self, tolerance: float) -> int:
        """The least rank whose best directions leave no more than the tolerance at the integer steps."""
        left = self._total - self._energy.cumsum(0)
        return int((left > tolerance**2 * self._total).sum()) + 1

    def project(self, rank: int) -> tuple[Tensor, Tensor]:
        """The leading directions, [rank, channels], and the coordinates at every half step, [n, rank]."""
        rows = self._vectors[:, :rank] / self._energy[:rank].sqrt()
        directions, coordinates, start = [], torch.zeros(len(self.times), rank, dtype=torch.float64), 0
        for part in self._parts():
            left = part - self._mean[start : start + part.shape[1]]
            directions.append(rows.T @ left[self._whole])
            coordinates += left @ directions[-1].T
            start += part.shape[1]
        return torch.cat(directions, 1), coordinates

    def rounded(
        self, directions: Tensor, curve: Tensor, knots: Knots, coordinates: Tensor, tolerance: float
    ) -> tuple[TimeBasis | None, float]:
        """The basis as it is stored, and the larger of its errors at integer steps and between them.

        None without a look at the features where the curves alone are too far off.
        """
        rank = len(directions)
        deviation = (spline_values(curve, self.times, knots) - coordinates[:, :rank]).square().sum(1)
        power = self._total / int(self._whole.sum())
        worst = max(float(deviation[places].mean()) for places in (self._whole, self._between))
        if worst > tolerance**2 * power:
            return None, (worst / power) ** 0.5
        mean, basis, points = (tensor.half() for tensor in (self._mean, directions, curve))
        squares, start = torch.zeros(len(self.times), dtype=torch.float64), 0
        for part in self._parts():
            place = slice(start, start + part.shape[1])
            made = basis_features(mean[place].float(), basis[:, place].float(), points, self.times, knots)
            squares += (made.double() - part).square().sum(1)
            start = place.stop
        whole, between = ((float(squares[at].mean()) / power) ** 0.5 for at in (self._whole, self._between))
        return TimeBasis(mean, basis, points, knots, float(f"{whole:.4g}")), max(whole, between)

    def _parts(self) -> Iterator[Tensor]:
        """Each output at every half step, [n, width] float64."""
        for _, part in time_outputs(self._unet, self.times.float()):
            yield part.detach().cpu().double()
