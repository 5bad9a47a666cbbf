"""Linear and convolution layers whose weight passes through the quantizer on every forward (section 3.1)."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.errors import InputError
from bitsfusion.kernels.fake_quantize import fake_quantize
from bitsfusion.nn.fused import fused_conv2d, fused_linear, fusible
from bitsfusion.numerics import check_bits


def _take_over(made: FakeQuantizedLayer, source: nn.Linear | nn.Conv2d, bits: int, scale: Tensor) -> None:
    """Moves `source`'s weight and bias into `made` and adds its scale; nothing is copied."""
    outputs = source.weight.shape[0]
    if scale.shape != (outputs,):
        raise InputError(f"scale: got shape {list(scale.shape)}, wanted [{outputs}], one per output channel")
    made.weight = source.weight
    made.bias = source.bias
    made.scale = nn.Parameter(scale.detach().to(source.weight.device, torch.float32))
    made.bits = check_bits(bits)
    made.train(source.training)


class FakeQuantizedLinear(nn.Linear):
    """A linear layer that computes with its weight rounded to 2^b + 1 levels.

    Parameters: weight [out, in] and scale [out] in float32, bias [out] or None. Both weight and scale
    train, through the straight-through estimator.
    """

    bits: int
    scale: nn.Parameter

    @classmethod
    def from_layer(cls, layer: nn.Linear, bits: int, scale: Tensor) -> FakeQuantizedLinear:
        """Takes over `layer`'s own parameters; `scale` is [out] float32."""
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, layer.bias is not None)
        _take_over(made, layer, bits, scale)
        return made

    def quantized_weight(self) -> Tensor:
        """The rounded weight, [out, in] float32, with gradients."""
        return fake_quantize(self.weight, self.scale, self.bits)

    def forward(self, input: Tensor) -> Tensor:
        if fusible(input, self.weight):
            return fused_linear(input, self.weight, self.scale, self.bias, self.bits)
        return functional.linear(input, self.quantized_weight(), self.bias)


def conv_geometry(layer: nn.Conv2d) -> dict[str, Any]:
    """What nn.Conv2d takes for a layer of `layer`'s geometry, all but bias, device and dtype."""
    sizes = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(layer, name) for name in sizes}


class FakeQuantizedConv2d(nn.Conv2d):
    """A 2-d convolution that computes with its weight rounded to 2^b + 1 levels.

    Parameters: weight [out, in / groups, kh, kw] and scale [out] in float32, bias [out] or None.
    """

    bits: int
    scale: nn.Parameter

    @classmethod
    def from_layer(cls, layer: nn.Conv2d, bits: int, scale: Tensor) -> FakeQuantizedConv2d:
        """Takes over `layer`'s own parameters; `scale` is [out] float32."""
        with torch.device("meta"):
            made = cls(**conv_geometry(layer), bias=layer.bias is not None)
        _take_over(made, layer, bits, scale)
        return made

    def quantized_weight(self) -> Tensor:
        """The rounded weight, [out, in / groups, kh, kw] float32, with gradients."""
        return fake_quantize(self.weight, self.scale, self.bits)

    def forward(self, input: Tensor) -> Tensor:
        if self.padding_mode == "zeros" and not isinstance(self.padding, str) and fusible(input, self.weight):
            geometry = (self.stride, self.padding, self.dilation, self.groups)
            return fused_conv2d(input, self.weight, self.scale, self.bias, self.bits, geometry)
        return self._conv_forward(input, self.quantized_weight(), self.bias)


FakeQuantizedLayer: TypeAlias = FakeQuantizedLinear | FakeQuantizedConv2d
