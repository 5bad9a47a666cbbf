"""Unpacking a layer in plain torch, on any device: the truth that every kernel is tested against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from bitsfusion.numerics import half_levels
from bitsfusion.packing.layout import symbols_per_byte
from bitsfusion.packing.radix import level_table

_PART = 1 << 20  # weights whose float32 form exists at once


def unpack_into(packed: Tensor, shape: Sequence[int], bits: int, out: Tensor) -> None:
    """level x scale in float32, rounded once to the dtype of `out`.

    Args:
        packed: uint8 [4 * shape[0] + packed_size], a layer's buffer (docs/format.md, "A layer in memory").
        shape: of the weight, [out, ...].
        bits: 1 to 8.
        out: contiguous, prod(shape) elements of a floating dtype; written to.
    """
    rows, numel = shape[0], math.prod(shape)
    if numel == 0:
        return
    width = numel // rows
    scales = packed[: 4 * rows].view(torch.float32)
    codes = packed[4 * rows :]
    weight = out.view(rows, width)
    step = max(1, _PART // width)
    for row in range(0, rows, step):
        last = min(rows, row + step)
        levels = _levels(codes, numel, row * width, last * width, bits).view(-1, width)
        weight[row:last].copy_(levels.mul_(scales[row:last, None]))


def unpack(packed: Tensor, shape: Sequence[int], bits: int, dtype: torch.dtype) -> Tensor:
    """As `unpack_into`; [*shape] of `dtype`, new."""
    out = torch.empty(tuple(shape), dtype=dtype, device=packed.device)
    unpack_into(packed, shape, bits, out)
    return out


def _levels(codes: Tensor, numel: int, first: int, last: int, bits: int) -> Tensor:
    """Levels first .. last of `numel` in all, as float32 [last - first]."""
    if bits == 8:
        plane = codes[numel + first // 8 : numel + -(-last // 8)]
        ninth = ((plane[:, None] >> _shifts(codes.device)) & 1).flatten()[first % 8 :][: last - first]
        return codes[first:last].float().add_(ninth, alpha=256).sub_(half_levels(bits))
    per_byte = symbols_per_byte(bits)
    if per_byte == 1:
        return codes[first:last].float().sub_(half_levels(bits))
    bytes_of = codes[first // per_byte : -(-last // per_byte)]
    levels = _table(bits, codes.device).index_select(0, bytes_of.int())
    return levels.flatten()[first % per_byte :][: last - first]


@cache
def _table(bits: int, device: torch.device) -> Tensor:
    return level_table(bits).to(device, torch.float32)


@cache
def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
