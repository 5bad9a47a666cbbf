"""EfficientDM's quantization-aware low-rank adapters (He et al., 2024, arXiv 2310.03270), weights only.

QALoRA: a low-rank product is added to the frozen weight and the sum quantized, so that nothing of the
adapter is left at inference; the model distils from full precision's output. Only adapters and step sizes train.
Scale-aware optimization: adapters have to move weights by about a step size, whatever it is in their
layer. Differs from the paper: it multiplies the adapters' gradients by the step size, which an optimizer like Adam
divides out again; here the product itself is in units of the layer's first step size. It distils on noise of its own
drawing, here on the data that every method trains on; its temporal step sizes are of activations, which stay as they
are here. Levels are LSQ's, one step size per output channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.nn.replace import replace_module
from bitsfusion_lab.rivals.lsq import LsqConv2d, LsqLinear, initial_step, lsq_quantize, stored_weight
from bitsfusion_lab.rivals.stored import UniformWeight

RANK = 32


class _Adapted(nn.Module):
    """What both kinds of layer have: a frozen `weight`, adapters `down` [r, in ...] and `up` [out, r], and `unit`, the
    step size that their product is in."""

    weight: Tensor
    unit: Tensor
    bits: int
    scale: nn.Parameter
    down: nn.Parameter
    up: nn.Parameter

    def adapt(self, rank: int, generator: torch.Generator) -> None:
        """Freezes the weight and begins with a product of zero."""
        frozen = self.weight.detach()
        del self._parameters["weight"]
        self.register_buffer("weight", frozen)
        self.register_buffer("unit", self.scale.detach().abs().mean())
        inputs = frozen[0].numel()
        rank = min(rank, len(frozen), inputs)
        self.down = nn.Parameter(torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(len(frozen), rank))

    def merged(self) -> Tensor:
        """weight + unit x up down, of the weight's shape, before it is rounded."""
        return self.weight + self.unit * (self.up @ self.down).reshape(self.weight.shape)

    def quantized_weight(self) -> Tensor:
        """The rounded sum, with gradients for adapters and step size."""
        return lsq_quantize(self.merged(), self.scale, self.bits)


class AdaptedLinear(_Adapted, LsqLinear):
    """A linear layer with a quantization-aware adapter."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.quantized_weight(), self.bias)


class AdaptedConv2d(_Adapted, LsqConv2d):
    """A convolution with a quantization-aware adapter."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.quantized_weight(), self.bias)


def adapt_model(model: nn.Module, bits: Mapping[str, int], rank: int = RANK, seed: int = 0) -> None:
    """Puts adapted layers in the place of those named in `bits`, in place; every other parameter is frozen.

    Frozen ones become buffers: what is left as a parameter trains.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, count in bits.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        step = initial_step(layer.weight, count)
        made: AdaptedLinear | AdaptedConv2d = (
            AdaptedLinear.from_layer(layer, count, step)  # type: ignore[assignment]
            if isinstance(layer, nn.Linear)
            else AdaptedConv2d.from_layer(layer, count, step)
        )
        made.adapt(rank, generator)
        replace_module(model, name, made)
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and not (isinstance(module, _Adapted) and key in ("scale", "up", "down")):
                del module._parameters[key]
                module.register_buffer(key, parameter.detach())


def stored_weights(model: nn.Module) -> dict[str, UniformWeight]:
    """What a file has to hold of each layer: adapters are merged, nothing of them is left."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _Adapted)}
    return {name: stored_weight(layer.merged(), layer.scale, layer.bits) for name, layer in layers.items()}
