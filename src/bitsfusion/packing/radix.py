"""Packs and unpacks levels in torch, on any device; `layout` says how they lie in the bytes."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from bitsfusion.numerics.levels import half_levels, level_count
from bitsfusion.packing import layout
from bitsfusion.packing.layout import WIDE, symbols_per_byte


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs levels in row-major order.

    Args:
        codes: integers of any shape, from -2^(b-1) to 2^(b-1).
        bits: 1 to 8.

    Returns:
        uint8 [packed_size(codes.numel(), bits)].
    """
    half, count, per_byte = half_levels(bits), level_count(bits), symbols_per_byte(bits)
    flat = codes.flatten()
    if flat.numel() and int(flat.abs().max()) > half:
        raise ValueError(
            f"codes: got {int(flat.abs().max())} as the largest magnitude, wanted at most {half} for b = {bits}"
        )
    symbols = flat.to(torch.int16) + half
    if bits == WIDE:
        low = (symbols & 255).to(torch.uint8)
        return torch.cat([low, _pack_plane(symbols >> 8)])
    symbols = _padded(symbols.to(torch.uint8), per_byte, half)
    packed = symbols[:, per_byte - 1].clone()
    for digit in range(per_byte - 2, -1, -1):
        packed.mul_(count).add_(symbols[:, digit])
    return packed


def unpack(packed: Tensor, numel: int, bits: int) -> Tensor:
    """Unpacks what `pack` made.

    Args:
        packed: uint8 [packed_size(numel, bits)].

    Returns:
        int16 [numel]. Bytes that `pack` never makes are not refused here: see `check_range`.
    """
    if bits == WIDE:
        symbols = packed[:numel].to(torch.int16)
        return symbols + (_unpack_plane(packed[numel:])[:numel].to(torch.int16) << 8) - half_levels(bits)
    table = level_table(bits).to(packed.device)
    return table[packed.long()].flatten()[:numel]


def unpack_at(packed: Tensor, numel: int, bits: int, places: Tensor) -> Tensor:
    """Unpacks the levels at some places only.

    Args:
        packed: uint8 [packed_size(numel, bits)].
        places: int64 of any shape, 0 to numel - 1, on the device of `packed`.

    Returns:
        int16 of the shape of `places`: `unpack(packed, numel, bits)[places]`.
    """
    if bits == WIDE:
        ninth = (packed[numel + places // 8].to(torch.int16) >> (places % 8).to(torch.int16)) & 1
        return packed[places].to(torch.int16) + (ninth << 8) - half_levels(bits)
    per_byte, count = symbols_per_byte(bits), level_count(bits)
    symbols = packed[places // per_byte].long() // count ** (places % per_byte) % count
    return symbols.to(torch.int16) - half_levels(bits)


@cache
def level_table(bits: int) -> Tensor:
    """`layout.level_table` as a tensor on the CPU; shared: do not write to it."""
    return torch.from_numpy(layout.level_table(bits))


def _padded(symbols: Tensor, multiple: int, value: int) -> Tensor:
    missing = -symbols.numel() % multiple
    return torch.cat([symbols, symbols.new_full((missing,), value)]).view(-1, multiple)


def _pack_plane(bit: Tensor) -> Tensor:
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bit.device)
    return (_padded(bit.to(torch.uint8), 8, 0) * weights).sum(1, dtype=torch.uint8)


def _unpack_plane(plane: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=plane.device)
    return ((plane[:, None] >> shifts) & 1).flatten()
