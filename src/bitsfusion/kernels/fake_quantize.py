"""Fake quantization in one pass over the weights each way where the library is built: training's inner loop."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bitsfusion.kernels.cpu.library import Library, library
from bitsfusion.numerics import fake_quantize as reference
from bitsfusion.numerics import half_levels


def fake_quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`numerics.fake_quantize`: the same result bit for bit, the same weight gradient, the scale's to rounding.

    Compiled for contiguous float32 on the CPU; anything else, and everything without the library, is left to the
    reference.

    Args:
        weight: [out, ...] float32.
        scale: [out] float32.
        bits: 1 to 8.

    Returns:
        float32 of `weight`'s shape.
    """
    usable = all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()
        for tensor in (weight, scale)
    )
    if not usable or torch.compiler.is_compiling() or _functions() is None:
        return reference(weight, scale, bits)
    result: Tensor = _Compiled.apply(weight, scale, half_levels(bits))
    return result


@cache
def _functions() -> ctypes.CDLL | None:
    """The library with its two functions declared; None where it is missing or has none."""
    found = library()
    if not isinstance(found, Library) or not hasattr(found.functions, "bitsfusion_fake_quantize_backward"):
        return None
    functions = found.functions
    pointer, integer, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    sizes = [integer, integer, whole]
    functions.bitsfusion_fake_quantize.argtypes = [pointer, pointer, *sizes, pointer, whole]
    functions.bitsfusion_fake_quantize_backward.argtypes = [
        *[pointer] * 3,
        *sizes,
        ctypes.c_float,
        pointer,
        pointer,
        whole,
    ]
    for function in (functions.bitsfusion_fake_quantize, functions.bitsfusion_fake_quantize_backward):
        function.restype = None
    return functions


class _Compiled(torch.autograd.Function):
    """Keeps nothing but its inputs: levels are found again in the backward pass, cheaper than written and read."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, half: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.half = half
        out = torch.empty_like(weight)
        functions = _functions()
        assert functions
        functions.bitsfusion_fake_quantize(
            weight.data_ptr(), scale.data_ptr(), *_rows(weight), half, out.data_ptr(), torch.get_num_threads()
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, scale = ctx.saved_tensors
        rows, width = _rows(weight)
        grad = grads[0].contiguous()
        grad_weight, grad_scale = torch.empty_like(weight), torch.empty_like(scale)
        functions = _functions()
        assert functions
        functions.bitsfusion_fake_quantize_backward(
            weight.data_ptr(),
            scale.data_ptr(),
            grad.data_ptr(),
            rows,
            width,
            ctx.half,
            1 / math.sqrt(max(1, width) * ctx.half),
            grad_weight.data_ptr(),
            grad_scale.data_ptr(),
            torch.get_num_threads(),
        )
        return grad_weight, grad_scale, None


def _rows(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.numel() // max(1, weight.shape[0])
