"""Finds the compiled library beside this file and calls it with raw pointers; no compiled tie to torch or Python."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INTERFACE = 4  # of the C++ sources; another one is a library left over from another version
FILE_PATTERN = "_native*.pyd" if os.name == "nt" else "_native*.so"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ALONE = 1 << 15  # weights that are not worth waking a second thread for


class Isa(IntEnum):
    """Instruction sets, as the library numbers them; a larger number is preferred."""

    SCALAR = 0
    AVX2 = 1
    AVX512 = 2
    NEON = 3


@dataclass(frozen=True)
class Library:
    """The loaded library.

    Fields:
        functions: what it exports.
        isas: the instruction sets that it and this processor have, the best one last.
        int8: the instruction sets that products on int8 activations can use here, the best one last.
    """

    functions: ctypes.CDLL
    isas: tuple[Isa, ...]
    int8: tuple[Isa, ...]


@dataclass(frozen=True)
class Missing:
    """There is no library. Field: the reason, one line."""

    reason: str


@cache
def library() -> Library | Missing:
    """The library, looked for once a process."""
    files = sorted(Path(__file__).parent.glob(FILE_PATTERN))
    if not files:
        return Missing("not built: no C++17 compiler when bitsfusion was installed; install again with one")
    return load(files[0])


def load(file: Path) -> Library | Missing:
    """The library in `file`."""
    try:
        functions = ctypes.CDLL(str(file))
        found = functions.bitsfusion_interface()
    except (OSError, AttributeError) as error:
        return Missing(f"{file.name} does not load: {error}")
    if found != INTERFACE:
        return Missing(f"{file.name} has interface {found}, wanted {INTERFACE}; install bitsfusion again")
    integer: Any = ctypes.c_int64
    pointer: Any = ctypes.c_void_p
    whole: Any = ctypes.c_int
    functions.bitsfusion_unpack.argtypes = [pointer, integer, integer, integer, whole, whole, pointer, whole, whole]
    functions.bitsfusion_exact_scale.argtypes = [pointer, integer, integer, whole, pointer, whole]
    layer, result = [pointer, integer, integer], [whole, pointer, pointer, whole, whole]
    functions.bitsfusion_int8_linear.argtypes = [*layer, integer, whole, pointer, integer, *result]
    functions.bitsfusion_int8_convolution.argtypes = [*layer, whole, pointer, *[integer] * 9, *result]
    isas = tuple(isa for isa in Isa if functions.bitsfusion_has_isa(int(isa)))
    int8 = tuple(isa for isa in Isa if functions.bitsfusion_has_int8(int(isa)))
    return Library(functions, isas, int8)


def unpack_into(
    packed: Tensor, shape: Sequence[int], bits: int, out: Tensor, isa: Isa | None = None, threads: int | None = None
) -> None:
    """`reference.unpack_into` in C++.

    Args:
        packed: uint8, contiguous, on the CPU: a layer's buffer.
        shape: of the weight.
        bits: 1 to 8.
        out: contiguous, prod(shape) elements of float32, bfloat16 or float16 on the CPU; written to.
        isa: the best one where not given.
        threads: torch's number where not given.

    Raises:
        RuntimeError: no library, or not this instruction set.
        ValueError: sizes that do not fit each other.
    """
    found = loaded()
    rows, numel = shape[0], out.numel()
    if packed.dtype != torch.uint8 or not packed.is_contiguous() or not out.is_contiguous():
        raise ValueError(f"packed: got {packed.dtype}, wanted contiguous uint8 and a contiguous out")
    if isa is not None and isa not in found.isas:
        raise RuntimeError(f"isa: got {isa.name}, wanted one of {', '.join(one.name for one in found.isas)}")
    if threads is None:
        threads = torch.get_num_threads() if numel > _ALONE else 1
    width = numel // max(1, rows)
    status = found.functions.bitsfusion_unpack(
        packed.data_ptr(),
        packed.numel(),
        rows,
        width,
        bits,
        DTYPES[out.dtype],
        out.data_ptr(),
        found.isas[-1] if isa is None else isa,
        threads,
    )
    if status or width * rows != numel:
        raise ValueError(f"packed: got {packed.numel()} bytes for b = {bits} and shape {list(shape)}")


def exact_scale(rows: Tensor, half: int, threads: int | None = None) -> Tensor | None:
    """The search of `kernels.scale` in C++.

    Args:
        rows: [out, n] float32 on the CPU, finite.
        half: 2^(b-1).

    Returns:
        [out] float32; None where the library refuses the size or memory does not suffice.

    Raises:
        RuntimeError: no library.
    """
    found = loaded()
    rows = rows.contiguous()
    scale = torch.empty(rows.shape[0])
    threads = threads or torch.get_num_threads()
    status = found.functions.bitsfusion_exact_scale(
        rows.data_ptr(), rows.shape[0], rows.shape[1], half, scale.data_ptr(), threads
    )
    return None if status else scale


def loaded() -> Library:
    """The library.

    Raises:
        RuntimeError: there is none; says why.
    """
    found = library()
    if isinstance(found, Missing):
        raise RuntimeError(f"CPU kernels: {found.reason}")
    return found
