"""One layer on int8 activations beside torch's dense one, by processor time, one thread.

    python benchmarks/int8_layer.py [--dtype float32] [--bits 1 2 4] [--rounds 3]

Levels and inputs are random. Layers take turns; ratios are of medians. Torch's speed is in 1e9 products a second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from forward import random_buffer
from torch import Tensor
from torch.nn import functional

from bitsfusion.kernels import int8

LINEAR = ((1536, 3072, 3072), (512, 12288, 3072), (128, 320, 1280), (2048, 320, 320))
"""Tokens, inputs, outputs."""
CONVOLUTIONS = ((320, 320, 32, 3), (640, 640, 16, 3), (1280, 1280, 8, 3), (2560, 1280, 8, 3), (320, 320, 32, 1))
"""Inputs, outputs, side of the image, kernel; a batch of two."""


def medians(runs: list[Callable[[], Tensor]], rounds: int) -> list[float]:
    """Seconds of each, which take turns; the first turn is not counted."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, found in zip(runs, times, strict=True):
            started = time.process_time()
            run()
            found.append(time.process_time() - started)
    return [statistics.median(found[1:]) for found in times]


def show(name: str, products: int, runs: list[Callable[[], Tensor]], rounds: int) -> None:
    dense, *others = medians(runs, rounds)
    ratios = " ".join(f"{seconds / dense:>6.3f}" for seconds in others)
    print(f"{name:<28} {products / dense / 1e9:>7.1f} {ratios}", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    dtype, bits = getattr(torch, chosen.dtype), chosen.bits
    torch.set_num_threads(1)
    print(f"{'layer':<28} {'torch':>7} " + " ".join(f"b = {b:>2}" for b in bits))
    for tokens, wide, out in LINEAR:
        x, weight, shape = (
            torch.randn(tokens, wide).to(dtype),
            torch.randn(out, wide).to(dtype),
            torch.Size((out, wide)),
        )
        runs = [lambda x=x, weight=weight: functional.linear(x, weight)]
        for b in bits:
            packed = random_buffer(shape, b)
            runs.append(lambda x=x, packed=packed, b=b, shape=shape: int8.linear(x, packed, shape, b, None))
        show(f"linear {tokens} x {wide} -> {out}", tokens * wide * out, runs, chosen.rounds)
    for wide, out, side, kernel in CONVOLUTIONS:
        x, shape = torch.randn(2, wide, side, side).to(dtype), torch.Size((out, wide, kernel, kernel))
        weight, pad = torch.randn(shape).to(dtype), kernel // 2
        runs = [lambda x=x, weight=weight, pad=pad: functional.conv2d(x, weight, padding=pad)]
        for b in bits:
            packed = random_buffer(shape, b)
            runs.append(
                lambda x=x, packed=packed, b=b, shape=shape, pad=pad: int8.convolution(
                    x, packed, shape, b, None, (pad, pad)
                )
            )
        show(f"{kernel}x{kernel} {wide} -> {out}, {side}x{side}", 2 * side * side * shape.numel(), runs, chosen.rounds)


if __name__ == "__main__":
    main()
