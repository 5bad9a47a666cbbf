"""Integer levels that minimise tr((T - Q) H (T - Q)^T): column by column with the error pushed on, then by descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitsfusion.calibration.factor import Factored
from bitsfusion.calibration.scales import clipped_levels, fitted_scale

COLUMNS = 128
"""Columns treated between two matrix products, which bring the others up to date."""


def codes_by_columns(target: Tensor, factor: Factored, scale: Tensor, bits: int) -> Tensor:
    """Levels, one column after another: each one's rounding error is made up for by the columns still to come.

    The error is |(T - Q) L|^2, and its part k holds columns from k on alone. From the last column to the first, those
    of much input energy first, each takes the level that makes its own part least, given those before it. That is the
    column pass of GPTQ, which finds the same updates through the inverse of H.

    Args:
        target: [out, n], in the dtype to compute in.
        factor: of the second moments, damped.
        scale: [out]; 0 makes every level 0.
        bits: 1 to 8.

    Returns:
        [out, n] whole numbers in `target`'s dtype.

    Source: GPTQ (Frantar et al., arXiv 2210.17323), from OBQ and OBS; the form without an inverse is Babai's nearest
    plane (1986).
    """
    order, lower = factor.order, factor.lower
    aimed, codes = target[:, order], torch.empty_like(target)
    missed = torch.empty_like(target)
    scale = scale.to(target.dtype)
    divisor = torch.where(scale == 0, math.inf, scale)
    diagonal = lower.diagonal().tolist()
    for end in range(aimed.shape[1], 0, -COLUMNS):
        begin = max(end - COLUMNS, 0)
        part, inner = aimed[:, begin:end].t().contiguous(), lower[begin:end, begin:end]
        carried = lower[end:, begin:end].t() @ missed[:, end:].t()
        found, lost = torch.empty_like(part), torch.empty_like(part)
        for j in reversed(range(end - begin)):
            found[j] = clipped_levels(part[j] + carried[j] / diagonal[begin + j], divisor, bits)
            lost[j] = part[j] - found[j] * scale
            carried[:j].addr_(inner[j, :j], lost[j])
        codes[:, begin:end], missed[:, begin:end] = found.t(), lost.t()
    return codes[:, order.argsort()]


def descended(
    codes: Tensor, target: Tensor, moments: Tensor, scale: Tensor, bits: int, sweeps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds of a refitted scale and coordinate descent: each column's best levels, all others as they are.

    Args:
        codes: [out, n] whole numbers in `target`'s dtype.
        target: [out, n].
        moments: [n, n], damped; a column without energy keeps its levels.
        scale: [out].
        bits: 1 to 8.
        sweeps: rounds; after the last one the scale is fitted once more. 0 fits the scale alone.

    Returns:
        Codes [out, n], their scale [out] float32, and codes x moments [out, n]; never worse than what was given.
    """
    codes = codes.clone()
    aimed, through = target @ moments, codes @ moments
    diagonal = moments.diagonal().tolist()
    for _ in range(sweeps):
        scale = fitted_scale(codes, aimed, through, scale)
        step = scale.to(target.dtype)
        divisor = torch.where(step == 0, math.inf, step)
        for begin in range(0, codes.shape[1], COLUMNS):
            end = min(begin + COLUMNS, codes.shape[1])
            inner = moments[begin:end, begin:end]
            slope = (aimed[:, begin:end] - through[:, begin:end] * step[:, None]).t().contiguous()
            levels = codes[:, begin:end].t().contiguous()
            moved = torch.zeros_like(slope)
            for j in range(end - begin):
                if diagonal[begin + j] <= 0:
                    continue
                better = clipped_levels(levels[j] * step + slope[j] / diagonal[begin + j], divisor, bits)
                moved[j] = better - levels[j]
                levels[j] = better
                slope[j + 1 :].addr_(inner[j, j + 1 :], moved[j] * step, alpha=-1)
            codes[:, begin:end] = levels.t()
            through.addmm_(moved.t(), moments[begin:end])
    return codes, fitted_scale(codes, aimed, through, scale), through
