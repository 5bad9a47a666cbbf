"""Fake quantization in one pass over the weights each way, training's inner loop: compiled on the CPU, Triton on CUDA.

The eager form, `numerics.fake_quantize`, is the truth beside both and serves every other device.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bitsfusion.kernels.cpu.library import Library, library
from bitsfusion.kernels.dispatch import triton_serves
from bitsfusion.numerics import fake_quantize as reference
from bitsfusion.numerics import fake_quantize_gradients as reference_gradients
from bitsfusion.numerics import half_levels


def fake_quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`numerics.fake_quantize`: the same result bit for bit, the same weight gradient, the scale's to rounding.

    One pass for contiguous float32 on the CPU (where the library is built) and on CUDA (where Triton is installed);
    anything else is left to the reference.

    Args:
        weight: [out, ...] float32.
        scale: [out] float32.
        bits: 1 to 8.

    Returns:
        float32 of `weight`'s shape.
    """
    if torch.compiler.is_compiling() or not (_by_triton(weight, scale) or _compiled(weight, scale)):
        return reference(weight, scale, bits)
    result: Tensor = _FakeQuantize.apply(weight, scale, bits)
    return result


@torch.no_grad()
def rounded(weight: Tensor, scale: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    """`fake_quantize` without gradients, into `out` where given (contiguous, of its shape, any floating dtype)."""
    if _by_triton(weight, scale):
        from bitsfusion.kernels import triton_fake_quantize

        return triton_fake_quantize.rounded(weight, scale, bits, torch.empty_like(weight) if out is None else out)
    functions = _compiled(weight, scale)
    if functions is None or (out is not None and out.dtype != torch.float32):
        value = reference(weight, scale, bits)
        return value if out is None else out.copy_(value)
    out = torch.empty_like(weight) if out is None else out
    functions.bitsfusion_fake_quantize(
        weight.data_ptr(),
        scale.data_ptr(),
        *_rows(weight),
        half_levels(bits),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def gradients(weight: Tensor, scale: Tensor, bits: int, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight and scale from that of the rounded weight, whose memory may be used for the first.

    Args:
        weight, scale, bits: as `fake_quantize`.
        grad: of `weight`'s shape and any floating dtype; not to be used afterwards.
    """
    if _by_triton(weight, scale):
        from bitsfusion.kernels import triton_fake_quantize

        return triton_fake_quantize.gradients(weight, scale, bits, grad.contiguous())
    functions = _compiled(weight, scale)
    grad = grad.to(weight.dtype)
    if functions is None:
        return reference_gradients(weight, scale, bits, grad)
    grad, grad_scale = grad.contiguous(), torch.empty_like(scale)
    rows, width = _rows(weight)
    half = half_levels(bits)
    functions.bitsfusion_fake_quantize_gradients(
        weight.data_ptr(),
        scale.data_ptr(),
        rows,
        width,
        half,
        1 / math.sqrt(max(1, width) * half),
        grad.data_ptr(),
        grad_scale.data_ptr(),
        torch.get_num_threads(),
    )
    return grad, grad_scale


class _FakeQuantize(torch.autograd.Function):
    """Keeps nothing but its inputs: levels are found again in the backward pass, cheaper than written and read."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.bits = bits
        return rounded(weight, scale, bits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, scale = ctx.saved_tensors
        own = grads[0].clone(memory_format=torch.contiguous_format)  # others may hold this gradient, too
        return *gradients(weight, scale, ctx.bits, own), None


def _by_triton(*tensors: Tensor) -> bool:
    """Whether Triton's kernels go for these tensors."""
    return all(t.device.type == "cuda" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors) and (
        triton_serves()
    )


def _compiled(*tensors: Tensor) -> ctypes.CDLL | None:
    """The functions, if there are any and they go for these tensors."""
    usable = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    return _functions() if usable else None


@cache
def _functions() -> ctypes.CDLL | None:
    """The library with its two functions declared; None where it is missing or has none."""
    found = library()
    if not isinstance(found, Library) or not hasattr(found.functions, "bitsfusion_fake_quantize_gradients"):
        return None
    functions = found.functions
    pointer, size, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    common: list[Any] = [pointer, pointer, size, size, whole]
    functions.bitsfusion_fake_quantize.argtypes = [*common, pointer, whole]
    functions.bitsfusion_fake_quantize_gradients.argtypes = [*common, ctypes.c_float, pointer, pointer, whole]
    for function in (functions.bitsfusion_fake_quantize, functions.bitsfusion_fake_quantize_gradients):
        function.restype = None
    return functions


def _rows(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.numel() // max(1, weight.shape[0])
