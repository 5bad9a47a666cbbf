"""How fast packed bytes become weights, for every implementation here: `make bench`.

    python benchmarks/unpack.py [--shape 1280 1280 3 3] [--rounds 9]

GB/s are of weights written, to one reused buffer; in brackets, the fraction of the speed at which torch copies a tensor
of that size and dtype to that buffer. All take turns, figures are medians. Threads are torch's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bitsfusion import kernels
from bitsfusion.kernels import reference
from bitsfusion.kernels.cpu.library import Isa, Library, library, unpack_into
from bitsfusion.nn.packed import packed_buffer
from bitsfusion.numerics import half_levels

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def layer(shape: tuple[int, ...], bits: int) -> Tensor:
    half = half_levels(bits)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-half, half + 1, shape, dtype=torch.int16, generator=generator)
    return packed_buffer(codes, torch.rand(shape[0], generator=generator), bits)


def medians(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each task; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(column[1:]) for name, column in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", default=[1280, 640, 3, 3])
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    shape = tuple(chosen.shape)
    found = library()
    isas: tuple[Isa, ...] = found.isas[::-1] if isinstance(found, Library) else ()
    print(f"unpack {list(shape)}, {torch.get_num_threads()} threads: {kernels.available()['cpu']}")
    names = ["copy", *(isa.name.lower() for isa in isas), "reference"]
    print(f"{'dtype':>9} {'b':>2}" + "".join(f"{name:>15}" for name in names) + "   GB/s written (of copy)")
    for dtype in DTYPES:
        dense, out = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        for bits in range(1, 9):
            packed = layer(shape, bits)
            tasks: dict[str, Callable[[], object]] = {"copy": lambda dense=dense, out=out: out.copy_(dense)}
            for isa in isas:
                tasks[isa.name.lower()] = lambda packed=packed, bits=bits, out=out, isa=isa: unpack_into(
                    packed, shape, bits, out, isa
                )
            tasks["reference"] = lambda packed=packed, bits=bits, out=out: reference.unpack_into(
                packed, shape, bits, out
            )
            seconds = medians(tasks, chosen.rounds)
            size = math.prod(shape) * dtype.itemsize
            cells = (f"{size / s / 1e9:7.2f} ({seconds['copy'] / s:4.2f})" for s in seconds.values())
            print(f"{str(dtype)[6:]:>9} {bits:>2}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
