"""How long the search for the best scales takes, compiled and in torch.

    python benchmarks/scale.py [--shape 320 5760] [--rounds 5]

Processor time in ns a weight, of normally distributed rows; all take turns, figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from bitsfusion.kernels.scale import exact_scale
from bitsfusion.numerics import ScaleInit, initial_scale


def nanoseconds(rows: torch.Tensor, bits: int, compiled: bool) -> float:
    started = time.process_time()
    if compiled:
        exact_scale(rows, bits)
    else:
        initial_scale(rows, bits, ScaleInit.EXACT)
    return (time.process_time() - started) / rows.numel() * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[320, 5760])
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    rows = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0))
    few = rows[: max(1, len(rows) // 16)]  # torch needs microseconds at 8 bits
    print(f"{'b':>2}{'compiled':>12}{'torch':>12}   ns of a processor a weight, {torch.get_num_threads()} threads")
    for bits in range(1, 9):
        times = [(nanoseconds(rows, bits, True), nanoseconds(few, bits, False)) for _ in range(chosen.rounds)]
        compiled, reference = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{bits:>2}{compiled:12.0f}{reference:12.0f}")


if __name__ == "__main__":
    main()
