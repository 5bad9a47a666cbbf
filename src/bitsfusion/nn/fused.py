"""A layer's product with its rounded weight as one differentiable operation, which keeps no rounded weight.

The rounded weight lives in memory that the next layer overwrites, and is made again in the backward pass: cheaper
than fresh memory for each layer. The gradient of the rounded weight is used nowhere else, so that it
becomes the weight's own in place.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from bitsfusion.kernels.fake_quantize import gradients, rounded
from bitsfusion.nn.scratch import scratch

Geometry: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""A convolution's stride, padding, dilation and groups."""


def fusible(input: Tensor, weight: Tensor) -> bool:
    """Whether the fused form is for this call: training, float32 weights, not while being compiled."""
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and not torch.compiler.is_compiling()
    )


def fused_linear(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """`linear(input, fake_quantize(weight, scale, bits), bias)`, in autocast's dtype where that is on."""
    result: Tensor = _Fused.apply(input, weight, scale, bias, bits, None)
    return result


def fused_conv2d(
    input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int, geometry: Geometry
) -> Tensor:
    """`conv2d(input, fake_quantize(weight, scale, bits), bias, ...)`, in autocast's dtype where that is on."""
    result: Tensor = _Fused.apply(input, weight, scale, bias, bits, geometry)
    return result


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        bits: int,
        geometry: Geometry | None,
    ) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        with torch.autocast(kind, enabled=False):
            cast = input.to(dtype)
            ctx.save_for_backward(cast, weight, scale)
            ctx.bits, ctx.geometry, ctx.input_dtype = bits, geometry, input.dtype
            ctx.bias_dtype = None if bias is None else bias.dtype
            value = _rounded(weight, scale, bits, dtype)
            shift = None if bias is None else bias.to(dtype)
            if geometry is None:
                return functional.linear(cast, value, shift)
            stride, padding, dilation, groups = geometry
            return functional.conv2d(cast, value, shift, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, scale = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], True, ctx.bias_dtype is not None and ctx.needs_input_grad[3]]
        with torch.autocast(input.device.type, enabled=False):
            value = _rounded(weight, scale, ctx.bits, input.dtype)
            parts = _linear_backward if ctx.geometry is None else _conv2d_backward
            grad_input, grad_value, grad_bias = parts(grad, input, value, wanted, ctx.geometry)
            assert grad_value is not None
            grad_weight, grad_scale = gradients(weight, scale, ctx.bits, grad_value)
        return (
            None if grad_input is None else grad_input.to(ctx.input_dtype),
            grad_weight,
            grad_scale,
            None if grad_bias is None else grad_bias.to(ctx.bias_dtype),
            None,
            None,
        )


def _linear_backward(
    grad: Tensor, input: Tensor, value: Tensor, wanted: list[bool], geometry: None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        grad @ value if wanted[0] else None,
        rows.t() @ input.reshape(-1, input.shape[-1]),
        rows.sum(0) if wanted[2] else None,
    )


def _conv2d_backward(
    grad: Tensor, input: Tensor, value: Tensor, wanted: list[bool], geometry: Geometry
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = geometry
    result: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        grad, input, value, [len(value)], stride, padding, dilation, False, [0, 0], groups, wanted
    )
    return result


def _rounded(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The rounded weight in memory that the next call of this thread overwrites (fresh memory on an accelerator)."""
    if weight.device.type != "cpu":
        return rounded(weight, scale, bits, torch.empty_like(weight, dtype=dtype))
    value = rounded(weight, scale, bits, scratch(weight.numel(), torch.float32, weight.device).view(weight.shape))
    if dtype == torch.float32:
        return value
    return scratch(weight.numel(), dtype, weight.device).view(weight.shape).copy_(value)
