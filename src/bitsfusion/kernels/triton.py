"""Unpacking in Triton, for CUDA. Importing this module imports triton, which `dispatch` does only where it serves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitsfusion.numerics import half_levels, level_count
from bitsfusion.packing.layout import symbols_per_byte

_BLOCK = 1024  # weights a program


def unpack_into(packed: Tensor, shape: Sequence[int], bits: int, out: Tensor) -> None:
    """`reference.unpack_into`, one program for each 1024 weights.

    Args:
        packed: uint8, contiguous, on a CUDA device (on the CPU under TRITON_INTERPRET=1): a layer's buffer.
        shape: of the weight.
        bits: 1 to 8.
        out: contiguous, prod(shape) elements of float32, bfloat16 or float16; written to.
    """
    numel, rows = out.numel(), shape[0]
    if numel == 0:
        return
    _unpack[(triton.cdiv(numel, _BLOCK),)](
        packed[4 * rows :],
        packed[: 4 * rows].view(torch.float32),
        out,
        numel,
        numel // rows,
        WIDE=bits == 8,
        PER_BYTE=symbols_per_byte(bits),
        LEVELS=level_count(bits),
        HALF=half_levels(bits),
        BLOCK=_BLOCK,
    )


@triton.jit
def _unpack(  # type: ignore[no-untyped-def]  # annotations mean something else to triton
    codes,
    scales,
    out,
    numel,
    width,
    WIDE: tl.constexpr,
    PER_BYTE: tl.constexpr,
    LEVELS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    symbol = tl.load(codes + i // PER_BYTE, mask=inside, other=0).to(tl.int32)
    for digit in tl.static_range(PER_BYTE - 1):
        symbol = tl.where(i % PER_BYTE > digit, symbol // LEVELS, symbol)
    if PER_BYTE > 1:
        symbol = symbol % LEVELS
    if WIDE:
        plane = tl.load(codes + numel + i // 8, mask=inside, other=0).to(tl.int32)
        symbol += ((plane >> (i % 8)) & 1) * 256
    scale = tl.load(scales + i // width, mask=inside, other=0.0)
    weight = (symbol - HALF).to(tl.float32) * scale
    if out.dtype.element_ty == tl.bfloat16:  # to nearest even by hand: the interpreter's cast cuts
        bits = weight.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(out + i, rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=inside)
    else:
        tl.store(out + i, weight.to(out.dtype.element_ty), mask=inside)
