"""Chooses the implementation for each device, and says why it is not a faster one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from bitsfusion.kernels import reference
from bitsfusion.kernels.cpu import library as cpu
from bitsfusion.kernels.cpu.library import Missing, library

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Implementation:
    """What unpacks on one kind of device.

    Fields:
        name: `avx512`, `avx2`, `neon` or `scalar` (compiled), `triton`, or `reference` (plain torch).
        why: the reason that it is not a faster one; None where it is the one meant for the device.
    """

    name: str
    why: str | None = None


def available() -> Mapping[str, Implementation]:
    """The implementation that serves each type of device here; any other type is served by the reference."""
    found = library()
    if isinstance(found, Missing):
        on_cpu = Implementation("reference", found.reason)
    else:
        best = found.isas[-1]
        slow = "the processor has none of the vector instructions there is code for" if best == cpu.Isa.SCALAR else None
        on_cpu = Implementation(best.name.lower(), slow)
    return {"cpu": on_cpu, "cuda": _on_cuda()}


def note() -> str | None:
    """One line for the user where the CPU is served by less than vector instructions, otherwise None."""
    served = available()["cpu"]
    return None if served.why is None else f"CPU kernels: {served.name} ({served.why})"


def unpack_into(packed: Tensor, shape: Sequence[int], bits: int, out: Tensor) -> None:
    """Writes a layer's weight to memory that exists: level x scale in float32, rounded once.

    Args:
        packed: uint8 [4 * shape[0] + packed_size], a layer's buffer (docs/format.md, "A layer in memory").
        shape: of the weight, [out, ...].
        bits: 1 to 8.
        out: contiguous, prod(shape) elements of a floating dtype, on the device of `packed`; written to.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    if math.prod(shape) != out.numel():
        raise ValueError(f"out: got {out.numel()} elements, wanted {math.prod(shape)} for shape {list(shape)}")
    kind, known = packed.device.type, out.dtype in _DTYPES
    if kind == "cpu" and known and not isinstance(library(), Missing):
        cpu.unpack_into(packed, shape, bits, out)
    elif kind == "cuda" and known and triton_serves():
        from bitsfusion.kernels import triton

        triton.unpack_into(packed, shape, bits, out)
    else:
        reference.unpack_into(packed, shape, bits, out)


def unpack(packed: Tensor, shape: Sequence[int], bits: int, dtype: torch.dtype) -> Tensor:
    """As `unpack_into`; [*shape] of `dtype`, new."""
    out = torch.empty(tuple(shape), dtype=dtype, device=packed.device)
    unpack_into(packed, shape, bits, out)
    return out


def triton_serves() -> bool:
    """Whether CUDA tensors here are served by Triton's kernels."""
    return _on_cuda().why is None


@cache
def _on_cuda() -> Implementation:
    if not torch.cuda.is_available():
        return Implementation("reference", "torch finds no CUDA device")
    if find_spec("triton") is None:
        return Implementation("reference", "triton is not installed")
    return Implementation("triton")
