"""LSQ: learned step size quantization (Esser et al., 2020, arXiv 1902.08153), weights only.

b bits have the 2^b integers -2^(b-1) .. 2^(b-1) - 1 (section 2): one more below zero than above, no balance integer.
Differs from the paper: one step size per output channel, as in every other method here; the paper has one a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.errors import InputError
from bitsfusion.nn.fake_quantized import FakeQuantizedConv2d, FakeQuantizedLinear
from bitsfusion.nn.replace import fake_quantized_layers, replace_module
from bitsfusion_lab.rivals.stored import UniformWeight


def level_range(bits: int) -> tuple[int, int]:
    """(-Q_N, Q_P) of signed data: -2^(b-1) and 2^(b-1) - 1."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def initial_step(weight: Tensor, bits: int) -> Tensor:
    """2 <|w|> / sqrt(Q_P) of each output channel (section 2.1): [out] float32 of a weight [out, ...]."""
    return 2 * weight.detach().float().abs().flatten(1).mean(1) / math.sqrt(level_range(bits)[1])


class _Lsq(torch.autograd.Function):
    """Eqs. 1 and 2; the gradients of Eqs. 3 and 5; the step's times g = 1 / sqrt(N Q_P) (section 2.2)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(weight, step)
        ctx.range = low, high
        return levels(weight, step, low, high).mul_(_column(step, weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        weight, step = ctx.saved_tensors
        low, high = ctx.range
        ratio = weight / _column(torch.where(step == 0, math.inf, step), weight)
        inside = (ratio > low) & (ratio < high)
        slope = ratio.round().clamp_(low, high).sub_(ratio * inside)
        factor = 1 / math.sqrt(weight[0].numel() * high)
        return grad * inside, slope.mul_(grad).flatten(1).sum(1) * factor, None, None


def levels(weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """round(clip(w / s, low, high)), float32 of `weight`'s shape; `step` is [out]."""
    divisor = _column(torch.where(step == 0, math.inf, step), weight)
    return torch.div(weight, divisor).round_().clamp_(low, high)


def lsq_quantize(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """The rounded weight, float32 of `weight`'s shape [out, ...], with gradients for it and for `step` ([out])."""
    result: Tensor = _Lsq.apply(weight, step, *level_range(bits))
    return result


class LsqLinear(FakeQuantizedLinear):
    """A linear layer with LSQ's levels; `scale` is the step size."""

    def quantized_weight(self) -> Tensor:
        return lsq_quantize(self.weight, self.scale, self.bits)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.quantized_weight(), self.bias)


class LsqConv2d(FakeQuantizedConv2d):
    """A convolution with LSQ's levels; `scale` is the step size."""

    def quantized_weight(self) -> Tensor:
        return lsq_quantize(self.weight, self.scale, self.bits)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.quantized_weight(), self.bias)


def lsq_model(model: nn.Module, bits: Mapping[str, int], steps: Mapping[str, Tensor] | None = None) -> None:
    """Puts LSQ layers in the place of those named in `bits`, in place; weights are taken over.

    Args:
        bits: layer name -> 2..8.
        steps: layer name -> [out] float32, step sizes to begin with; `initial_step` where not given.

    Raises:
        InputError: one bit, whose Q_P is zero.
    """
    if 1 in bits.values():
        raise InputError("LSQ: got 1 bit, wanted 2 to 8: signed levels of one bit have nothing above zero")
    for name, count in bits.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        given = (steps or {}).get(name)
        step = initial_step(layer.weight, count) if given is None else given
        made = (
            LsqLinear.from_layer(layer, count, step)
            if isinstance(layer, nn.Linear)
            else LsqConv2d.from_layer(layer, count, step)
        )
        replace_module(model, name, made)


def stored_weights(model: nn.Module) -> dict[str, UniformWeight]:
    """What a file has to hold of each LSQ layer."""
    layers = fake_quantized_layers(model)
    return {name: stored_weight(layer.weight, layer.scale, layer.bits) for name, layer in layers.items()}


def stored_weight(weight: Tensor, step: Tensor, bits: int) -> UniformWeight:
    """The codes of a weight [out, ...] and its step sizes [out]."""
    low, high = level_range(bits)
    codes = levels(weight.detach(), step.detach(), low, high).sub_(low).to(torch.uint8)
    return UniformWeight(bits, codes, step.detach()[None].clone(), torch.tensor([[-low]], dtype=torch.uint8))


def _column(step: Tensor, weight: Tensor) -> Tensor:
    return step.reshape(-1, *[1] * (weight.dim() - 1))
