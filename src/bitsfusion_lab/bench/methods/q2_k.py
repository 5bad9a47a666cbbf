"""GGUF's Q2_K blocks, which the gguf library reads but cannot write.

A block holds 256 weights in 16 groups of 16. Group g has 4-bit integers s and m beside two float16 of the block:

    weight = d s[g] q - dmin m[g],    q = 0 .. 3

Bytes of a block: 16 of s (low half) and m (high half), 64 of q, 2 of d, 2 of dmin. Byte 32 h + i of q holds weights
128 h + 32 j + i for j = 0 .. 3, in bits 2 j and 2 j + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK, GROUP, BLOCK_BYTES = 256, 16, 84
_LARGEST, _LARGEST_SCALE = 3, 15
_SHRINK = torch.linspace(0.6, 1.0, 9)
"""How much of a group's range is tried for the four levels; the least squared error wins."""


def encode_q2_k(weight: Tensor) -> Tensor:
    """[rows, columns] float -> [rows, columns / 256 * 84] uint8; columns is a multiple of 256."""
    rows, columns = weight.shape
    groups = weight.float().reshape(-1, BLOCK // GROUP, GROUP)
    scale, offset = _fit(groups)
    d, s = _integers(scale)
    dmin, m = _integers(offset)
    step = (d[:, None] * s)[..., None]
    symbols = (groups + (dmin[:, None] * m)[..., None]) / torch.where(step > 0, step, 1)
    symbols = symbols.round().clamp(0, _LARGEST).to(torch.uint8).reshape(-1, 2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[None, None, :, None]
    parts = (
        (s.to(torch.uint8) | (m.to(torch.uint8) << 4)),
        (symbols << shifts).sum(2, dtype=torch.uint8).reshape(-1, 64),
        d.half()[:, None].view(torch.uint8),
        dmin.half()[:, None].view(torch.uint8),
    )
    return torch.cat(parts, dim=1).reshape(rows, columns // BLOCK * BLOCK_BYTES)


def _fit(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset, both >= 0, of each group [..., 16] for levels scale q - offset: the best of several ranges."""
    low = groups.amin(-1).clamp(max=0)
    high = groups.amax(-1)
    best = torch.full_like(low, float("inf"))
    scale, offset = torch.zeros_like(low), -low
    for shrink in _SHRINK.tolist():
        step = ((high - low) * shrink / _LARGEST).clamp(min=1e-12)
        start = low * shrink
        for _ in range(2):
            symbols = ((groups - start[..., None]) / step[..., None]).round().clamp(0, _LARGEST)
            step, start = _line(symbols, groups)
        symbols = ((groups - start[..., None]) / step[..., None]).round().clamp(0, _LARGEST)
        error = (symbols * step[..., None] + start[..., None] - groups).square().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scale, offset = torch.where(better, step, scale), torch.where(better, -start, offset)
    return scale, offset


def _line(symbols: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The least-squares line groups = step symbols + start over the last dimension, start <= 0 and step > 0."""
    mean, target = symbols.mean(-1), groups.mean(-1)
    spread = (symbols.square().mean(-1) - mean.square()).clamp(min=1e-12)
    step = ((symbols * groups).mean(-1) - mean * target) / spread
    start = target - step * mean
    through_zero = (symbols * groups).sum(-1) / symbols.square().sum(-1).clamp(min=1e-12)
    return torch.where(start > 0, through_zero, step).clamp(min=1e-12), start.clamp(max=0)


def _integers(values: Tensor) -> tuple[Tensor, Tensor]:
    """[blocks, 16] values >= 0 -> a float16-exact unit per block and integers 0 .. 15 in it."""
    unit = (values.amax(-1) / _LARGEST_SCALE).half().float()
    whole = (values / torch.where(unit > 0, unit, 1)[:, None]).round().clamp(0, _LARGEST_SCALE)
    return unit, whole
