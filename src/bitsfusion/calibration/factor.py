"""Second moments made positive definite and factored, in two matrices of memory: the moments and their factor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitsfusion.errors import InputError

BLOCK = 512
"""Columns factored or solved between two matrix products."""

_WIDE = 2048  # columns of the remainder that one matrix product brings up to date


@dataclass(frozen=True)
class Factored:
    """H + ridge I, and its Cholesky factor in the order of input energy, least first.

    Fields:
        moments: [n, n], H + ridge I.
        ridge: scalar.
        order: [n], the columns by growing energy.
        lower: [n, n]; L below and on the diagonal, with L L^T = (H + ridge I)[order][:, order]; above it is no meaning.
    """

    moments: Tensor
    ridge: Tensor
    order: Tensor
    lower: Tensor


def factored(moments: Tensor, damping: float) -> Factored:
    """Adds damping times the mean diagonal to the diagonal, more until there is a factor.

    Where not even ten times that is enough, what came in is rounding alone (inputs that do not vary, centered), and
    twice the largest row sum of magnitudes is added, which always is.

    Args:
        moments: H, [n, n]; its diagonal is changed in place, so that no copy is needed. All zeros get the identity.
        damping: in units of the mean diagonal.

    Raises:
        InputError: values that are not finite.
    """
    own = moments.diagonal().clone()
    mean = own.mean()
    unit = torch.where(mean > 0, mean, torch.ones_like(mean))
    order = own.argsort(stable=True)
    ridges = [damping] if bool(mean > 0) else [1.0]
    stronger = [more for more in (1e-3, 1e-2, 1e-1, 1.0, 10.0) if more > ridges[0]]
    for more in [*ridges, *stronger, None]:
        ridge = _dominating(moments, own) if more is None else more * unit
        moments.diagonal().copy_(own + ridge)
        lower = _ordered(moments, order)
        if cholesky_(lower):
            return Factored(moments, ridge, order, lower)
        del lower
    raise InputError("second moments: got values that are not finite, wanted finite inputs")


def _dominating(moments: Tensor, own: Tensor) -> Tensor:
    """What makes any symmetric matrix with the diagonal `own` positive definite: twice its largest row sum."""
    moments.diagonal().copy_(own)
    return 2 * torch.stack([rows.abs().sum(1).max() for rows in moments.split(BLOCK)]).max()


def _ordered(moments: Tensor, order: Tensor) -> Tensor:
    """moments[order][:, order], a few rows at a time."""
    found = torch.empty_like(moments)
    for begin in range(0, len(order), BLOCK):
        found[begin : begin + BLOCK] = moments[order[begin : begin + BLOCK]][:, order]
    return found


def cholesky_(matrix: Tensor) -> bool:
    """L of L L^T = `matrix` in its place, block by block; what is above the diagonal is left as it comes.

    Args:
        matrix: [n, n], symmetric.

    Returns:
        Whether it is positive definite; if not, its content is lost.
    """
    size = len(matrix)
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        corner, failed = torch.linalg.cholesky_ex(matrix[begin:end, begin:end])
        if bool(failed):
            return False
        matrix[begin:end, begin:end] = corner
        below = matrix[end:, begin:end]
        below.copy_(torch.linalg.solve_triangular(corner, below.t(), upper=False).t())
        for first in range(end, size, _WIDE):
            last = min(first + _WIDE, size)
            matrix[first:, first:last].addmm_(below[first - end :], below[first - end : last - end].t(), alpha=-1)
    return bool(torch.isfinite(matrix.diagonal()).all())


def solved(right: Tensor, lower: Tensor) -> Tensor:
    """X of X L L^T = `right`.

    Args:
        right: [out, n], used up.
        lower: [n, n]; above its diagonal nothing is looked at.

    Returns:
        [out, n].
    """
    size = len(lower)
    solve = torch.linalg.solve_triangular
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        part, corner = right[:, begin:end], lower[begin:end, begin:end]
        part.addmm_(right[:, :begin], lower[begin:end, :begin].t(), alpha=-1)
        part.copy_(solve(corner, part.t(), upper=False).t())
    for begin in reversed(range(0, size, BLOCK)):
        end = min(begin + BLOCK, size)
        part, corner = right[:, begin:end], lower[begin:end, begin:end]
        part.addmm_(right[:, end:], lower[end:, begin:end], alpha=-1)
        part.copy_(solve(corner, part, upper=False, left=False))
    return right
