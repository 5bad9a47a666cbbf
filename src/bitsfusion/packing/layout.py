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

from bitsfusion.errors import ArtifactError
from bitsfusion.numerics.levels import check_bits, half_levels, level_count

_SYMBOLS = {1: 5, 2: 3, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1}
WIDE = 8
"""The one b whose levels do not fit a byte."""

_PART = 1 << 18  # bytes of the ninth-bit plane that are looked at together


def symbols_per_byte(bits: int) -> int:
    """How many weights a byte holds; 1 for b = 8, whose ninth bit lies in a plane of its own."""
    return _SYMBOLS.get(check_bits(bits), 1)


def packed_size(numel: int, bits: int) -> int:
    """The bytes that `radix.pack` makes of `numel` weights, exactly."""
    per_byte = symbols_per_byte(bits)
    return -(-numel // per_byte) + (-(-numel // 8) if bits == WIDE else 0)


@cache
def level_table(bits: int) -> np.ndarray:
    """The levels that each byte encodes: int16 [256, symbols_per_byte(bits)]; shared: do not write to it.

    For b = 8 the table covers the low 8 bits; the plane adds 256.
    """
    digits = np.arange(256)
    columns = []
    for _ in range(symbols_per_byte(bits)):
        columns.append(digits % level_count(bits))
        digits = digits // level_count(bits)
    return (np.stack(columns, axis=1) - half_levels(bits)).astype(np.int16)


def check_range(packed: np.ndarray, numel: int, bits: int) -> None:
    """Refuses bytes that `radix.pack` never makes, so that every layer has exactly one packed form.

    Args:
        packed: uint8 [packed_size(numel, bits)].

    Raises:
        ArtifactError: a byte above the largest one of the table above, a ninth bit beside low bits, or
            unused places that are not level 0. The message does not name the layer: the caller does.
    """
    if len(packed) != packed_size(numel, bits):
        raise ArtifactError(
            f"got {len(packed)} packed bytes, wanted {packed_size(numel, bits)} for {numel} weights of b = {bits}"
        )
    if numel == 0:
        return
    per_byte, count = symbols_per_byte(bits), level_count(bits)
    if bits == WIDE:
        _check_plane(packed[:numel], packed[numel:])
        return
    largest = int(packed.max())
    if largest >= count**per_byte:
        raise ArtifactError(f"got a byte of {largest}, wanted at most {count**per_byte - 1} for b = {bits}")
    unused = len(packed) * per_byte - numel
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
