"""Levels <-> bytes: as many symbols a byte as fit.

A symbol is a level plus 2^(b-1), so it counts from 0. With L = 2^b + 1 levels a byte holds n symbols,
byte = d_0 + d_1 L + ... + d_(n-1) L^(n-1), the earlier weight in the lower digit.

    b    L   symbols a byte   largest byte   bits a weight
    1    3         5          3^5 - 1 = 242      1.6
    2    5         3          5^3 - 1 = 124      2.667
    3    9         2          9^2 - 1 = 80       4
    4   17         1          16                 8
    5   33         1          32                 8
    6   65         1          64                 8
    7  129         1          128                8
    8  257         -          -                  9

b = 8 has one level more than a byte has values: its bytes are the low 8 bits of every symbol, followed by
a plane with bit 8 of every symbol, eight symbols a byte, the earlier in the lower bit (set for the largest
level only). Unused places of the last byte hold the symbol of level 0; of the plane, zero bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from bitsfusion.errors import ArtifactError
from bitsfusion.numerics import check_bits, half_levels, level_count

_SYMBOLS = {1: 5, 2: 3, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1}
_WIDE = 8  # the one b whose levels do not fit a byte
_PART = 1 << 18  # bytes of the ninth-bit plane that are looked at together


def symbols_per_byte(bits: int) -> int:
    """How many weights a byte holds; 1 for b = 8, whose ninth bit lies in a plane of its own."""
    return _SYMBOLS.get(check_bits(bits), 1)


def packed_size(numel: int, bits: int) -> int:
    """The bytes that `pack` makes of `numel` weights, exactly."""
    per_byte = symbols_per_byte(bits)
    return -(-numel // per_byte) + (-(-numel // 8) if bits == _WIDE else 0)


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
    if bits == _WIDE:
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
    if bits == _WIDE:
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
    if bits == _WIDE:
        ninth = (packed[numel + places // 8].to(torch.int16) >> (places % 8).to(torch.int16)) & 1
        return packed[places].to(torch.int16) + (ninth << 8) - half_levels(bits)
    per_byte, count = symbols_per_byte(bits), level_count(bits)
    symbols = packed[places // per_byte].long() // count ** (places % per_byte) % count
    return symbols.to(torch.int16) - half_levels(bits)


@cache
def level_table(bits: int) -> Tensor:
    """The levels that each byte stands for: int16 [256, symbols_per_byte(bits)]; shared: do not write to it.

    For b = 8 the table covers the low 8 bits; the plane adds 256.
    """
    digits = torch.arange(256)
    columns = []
    for _ in range(symbols_per_byte(bits)):
        columns.append(digits % level_count(bits))
        digits = digits // level_count(bits)
    return (torch.stack(columns, dim=1) - half_levels(bits)).to(torch.int16)


def check_range(packed: Tensor, numel: int, bits: int) -> None:
    """Refuses bytes that `pack` never makes, so that every layer has exactly one packed form.

    Args:
        packed: uint8 [packed_size(numel, bits)].

    Raises:
        ArtifactError: a byte above the largest one of the table above, a ninth bit beside low bits, or
            unused places that are not level 0. The message does not name the layer: the caller does.
    """
    if packed.numel() != packed_size(numel, bits):
        raise ArtifactError(
            f"got {packed.numel()} packed bytes, wanted {packed_size(numel, bits)} for {numel} weights of b = {bits}"
        )
    if numel == 0:
        return
    per_byte, count = symbols_per_byte(bits), level_count(bits)
    if bits == _WIDE:
        _check_plane(packed[:numel].cpu().numpy(), packed[numel:].cpu().numpy())
        return
    largest = int(packed.max())
    if largest >= count**per_byte:
        raise ArtifactError(f"got a byte of {largest}, wanted at most {count**per_byte - 1} for b = {bits}")
    unused = packed.numel() * per_byte - numel
    if unused and bool(level_table(bits)[int(packed[-1])][per_byte - unused :].any()):
        raise ArtifactError("got weights after the last one, wanted level 0 in the unused places of the last byte")


def _check_plane(low: np.ndarray, plane: np.ndarray) -> None:
    """`check_range` for b = 8, a part at a time."""
    for start in range(0, len(low), 8 * _PART):
        part = low[start : start + 8 * _PART]
        ninth = np.unpackbits(plane[start // 8 : start // 8 + _PART], bitorder="little")
        if (ninth[: len(part)] & (part != 0)).any():
            raise ArtifactError("got a symbol above 256, wanted at most 256 for b = 8")
        if ninth[len(part) :].any():
            raise ArtifactError("got bits set after the last weight of the ninth-bit plane, wanted zeros")


def _padded(symbols: Tensor, multiple: int, value: int) -> Tensor:
    missing = -symbols.numel() % multiple
    return torch.cat([symbols, symbols.new_full((missing,), value)]).view(-1, multiple)


def _pack_plane(bit: Tensor) -> Tensor:
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bit.device)
    return (_padded(bit.to(torch.uint8), 8, 0) * weights).sum(1, dtype=torch.uint8)


def _unpack_plane(plane: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=plane.device)
    return ((plane[:, None] >> shifts) & 1).flatten()
