"""Fake quantization in Triton, for CUDA: one pass over the weights each way.

Importing this module imports triton, which `fake_quantize` does only where it serves.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitsfusion.numerics import half_levels

_BLOCK = 1024  # weights a program, or a turn of its loop

_TO_WHOLE = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it and taken away again is whole, halves to even


def rounded(weight: Tensor, scale: Tensor, bits: int, out: Tensor) -> Tensor:
    """`numerics.fake_quantize` without gradients, cast to the dtype of `out`.

    Args:
        weight: [out, ...] float32, contiguous, on a CUDA device (on the CPU under TRITON_INTERPRET=1).
        scale: [out] float32.
        bits: 1 to 8.
        out: contiguous, of `weight`'s shape, float32, bfloat16 or float16; written to.
    """
    rows, numel = weight.shape[0], weight.numel()
    if numel:
        _round[(triton.cdiv(numel, _BLOCK),)](
            weight, scale, out, numel, numel // rows, HALF=half_levels(bits), BLOCK=_BLOCK
        )
    return out


def gradients(weight: Tensor, scale: Tensor, bits: int, grad: Tensor) -> tuple[Tensor, Tensor]:
    """`numerics.fake_quantize_gradients`: the weight's bit for bit, the scale's to the rounding of its sum.

    Args:
        weight, scale, bits: as `rounded`.
        grad: of the rounded weight, contiguous, of a floating dtype.
    """
    rows = weight.shape[0]
    width, half = weight.numel() // max(1, rows), half_levels(bits)
    grad_weight, grad_scale = torch.empty_like(weight), torch.zeros_like(scale)
    if weight.numel():
        factor = 1 / math.sqrt(width * half)
        _backward[(rows,)](weight, scale, grad, grad_weight, grad_scale, width, factor, HALF=half, BLOCK=_BLOCK)
    return grad_weight, grad_scale


@triton.jit
def _ratio(weight, scale):  # type: ignore[no-untyped-def]  # annotations mean something else to triton
    """w / s, rounded as IEEE says; 0 where s is 0."""
    return tl.div_rn(weight, tl.where(scale == 0.0, float("inf"), scale))


@triton.jit
def _clipped(ratio, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """Within the levels; NaN stays NaN."""
    ratio = tl.where(ratio > HALF, HALF * 1.0, ratio)
    return tl.where(ratio < -HALF, HALF * -1.0, ratio)


@triton.jit
def _round(weights, scales, out, numel, width, HALF: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    scale = tl.load(scales + i // width, mask=inside, other=1.0)
    ratio = _clipped(_ratio(tl.load(weights + i, mask=inside, other=0.0), scale), HALF)
    value = ((ratio + _TO_WHOLE) - _TO_WHOLE) * scale
    if out.dtype.element_ty == tl.bfloat16:  # to nearest even by hand: the interpreter's cast cuts
        bits = tl.where(value == value, value, 0.0).to(tl.uint32, bitcast=True)
        cut = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        cut = tl.where(value == value, cut, 0x7FC0)  # NaN
        tl.store(out + i, cut.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=inside)
    else:
        tl.store(out + i, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    weights, scales, grads, grad_weights, grad_scales, width, factor, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scales + row)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        i = row * width + column
        grad = tl.load(grads + i, mask=inside, other=0.0).to(tl.float32)
        ratio = _ratio(tl.load(weights + i, mask=inside, other=0.0), scale)
        clipped = _clipped(ratio, HALF)
        passed = clipped == ratio
        slope = ((clipped + _TO_WHOLE) - _TO_WHOLE) - tl.where(passed, ratio, 0.0)
        tl.store(grad_weights + i, tl.where(passed, grad, 0.0), mask=inside)
        total += tl.where(inside, slope * grad, 0.0)
    tl.store(grad_scales + row, tl.sum(total, axis=0) * factor)
