"""How fast the reference turns packed bytes into levels, on one core: `make bench`.

GB/s are of packed bytes read; weights a second say what a layer waits for.
"""

from __future__ import annotations

import time

import torch

from bitsfusion.numerics import half_levels
from bitsfusion.packing.radix import pack, unpack

WEIGHTS = 4_000_000
REPEATS = 7


def seconds(bits: int) -> tuple[int, float]:
    """Packed bytes, and the best of several times to unpack them."""
    half = half_levels(bits)
    codes = torch.randint(-half, half + 1, (WEIGHTS,), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, WEIGHTS, bits), codes)
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        unpack(packed, WEIGHTS, bits)
        best = min(best, time.perf_counter() - started)
    return packed.numel(), best


def main() -> None:
    torch.set_num_threads(1)
    print(f"unpack, reference, {WEIGHTS / 1e6:.0f} M weights, one thread")
    print(f"{'b':>2} {'bits/weight':>12} {'GB/s':>8} {'M weights/s':>12}")
    for bits in range(1, 9):
        count, best = seconds(bits)
        print(f"{bits:>2} {8 * count / WEIGHTS:>12.3f} {count / best / 1e9:>8.3f} {WEIGHTS / best / 1e6:>12.0f}")


if __name__ == "__main__":
    main()
