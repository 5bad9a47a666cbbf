"""Balance-integer levels (section 4.1): b bits stand for the 2^b + 1 integers -2^(b-1) .. 2^(b-1).

b   levels   integers      counted as log2(levels)
1      3     -1 .. 1       1.585
2      5     -2 .. 2       2.322
3      9     -4 .. 4       3.170
4     17     -8 .. 8       4.087
5     33    -16 .. 16      5.044
6     65    -32 .. 32      6.022
7    129    -64 .. 64      7.011
8    257   -128 .. 128     8.006
"""

from __future__ import annotations

import math

from bitsfusion.errors import InputError

MIN_BITS = 1
MAX_BITS = 8


def check_bits(bits: int, where: str = "bits") -> int:
    """`bits` itself, if it is a whole number from 1 to 8; otherwise an `InputError` that names `where`."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise InputError(f"{where}: got {bits!r} bits, wanted a whole number from {MIN_BITS} to {MAX_BITS}")
    return bits


def half_levels(bits: int) -> int:
    """The largest integer level, 2^(b-1); the smallest is its negative."""
    return 1 << (check_bits(bits) - 1)


def level_count(bits: int) -> int:
    """The number of levels, 2^b + 1."""
    return 2 * half_levels(bits) + 1


def level_bits(bits: int) -> float:
    """What a b-bit weight counts for, log2(2^b + 1) bits (Appendix H)."""
    return math.log2(level_count(bits))
