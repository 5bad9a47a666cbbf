"""Integer levels that minimise tr((T - Q) H (T - Q)^T): column by column with the error pushed on, then by descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitsfusion.calibration.scales import clipped_levels
from bitsfusion.errors import InputError

COLUMNS = 128
"""Columns treated between two matrix products, which bring the others up to date."""


def damped(moments: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag H) * I; a matrix of zeros gets the identity."""
    mean = moments.diagonal().mean()
    ridge = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
    result = moments.clone()
    result.diagonal().add_(ridge)
    return result


def inverse_factor(moments: Tensor) -> Tensor:
    """The upper triangular U with U^T U = H^-1, more damping being added until there is one.

    Raises:
        InputError: not even ten times the mean diagonal suffices.
    """
    for damping in (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
        matrix = damped(moments, damping) if damping else moments
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not bool(failed):
            inverse = torch.cholesky_inverse(lower)
            del lower, matrix  # three of them at a time are enough where there are thousands of columns
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not bool(failed) and bool(torch.isfinite(upper.diagonal()).all()):
                return upper
    raise InputError("second moments: got a matrix that no damping makes positive definite")


def codes_by_columns(target: Tensor, moments: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Levels, one column after another: each one's rounding error is made up for by the columns still to come.

    Columns of much input energy come first. With U^T U = H^-1 (rows and columns in that order) the error of column j,
    divided by U_jj and times U_j,k, is taken off every later column k.

    Args:
        target: [out, n], in the dtype to compute in.
        moments: [n, n], positive definite.
        scale: [out]; 0 makes every level 0.
        bits: 1 to 8.

    Returns:
        [out, n] whole numbers in `target`'s dtype.

    Source: GPTQ (Frantar et al., arXiv 2210.17323), from OBQ and OBS.
    """
    order = moments.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(moments[order][:, order]).to(target.dtype)
    left, codes = target[:, order], torch.zeros_like(target)
    scale = scale.to(target.dtype)
    divisor = torch.where(scale == 0, math.inf, scale)
    diagonal = factor.diagonal().tolist()
    for begin in range(0, left.shape[1], COLUMNS):
        end = min(begin + COLUMNS, left.shape[1])
        part, upper = left[:, begin:end].t().contiguous(), factor[begin:end, begin:end]
        errors, found = torch.empty_like(part), torch.empty_like(part)
        for j in range(end - begin):
            found[j] = clipped_levels(part[j], divisor, bits)
            errors[j] = (part[j] - found[j] * scale) / diagonal[begin + j]
            if j + 1 < end - begin:
                part[j + 1 :].addr_(upper[j, j + 1 :], errors[j], alpha=-1)
        codes[:, begin:end] = found.t()
        left[:, end:].addmm_(errors.t(), factor[begin:end, end:], alpha=-1)
    return codes[:, order.argsort()]


def descended(codes: Tensor, target: Tensor, moments: Tensor, scale: Tensor, bits: int) -> Tensor:
    """One round of coordinate descent: each column's best levels, all other columns as they are; never worse.

    Args:
        codes: [out, n] whole numbers in `target`'s dtype.
        target, moments, scale, bits: as `codes_by_columns`; a column without energy keeps its levels.

    Returns:
        [out, n] whole numbers.
    """
    scale = scale.to(target.dtype)
    divisor = torch.where(scale == 0, math.inf, scale)
    codes = codes.clone()
    slope = (target - codes * scale[:, None]) @ moments
    diagonal = moments.diagonal().tolist()
    for begin in range(0, codes.shape[1], COLUMNS):
        end = min(begin + COLUMNS, codes.shape[1])
        part, inner = slope[:, begin:end].t().contiguous(), moments[begin:end, begin:end]
        levels = codes[:, begin:end].t().contiguous()
        moved = torch.zeros_like(part)
        for j in range(end - begin):
            if diagonal[begin + j] <= 0:
                continue
            better = clipped_levels(levels[j] * scale + part[j] / diagonal[begin + j], divisor, bits)
            moved[j] = (better - levels[j]) * scale
            levels[j] = better
            part[j + 1 :].addr_(inner[j, j + 1 :], moved[j], alpha=-1)
        codes[:, begin:end] = levels.t()
        slope.addmm_(moved.t(), moments[begin:end], alpha=-1)
    return codes
