"""What a loaded model holds in its linear layers and convolutions: bytes, and how far from the dense weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from bitsfusion_lab.bench.methods.base import Method


@dataclass(frozen=True)
class LayerMeasurement:
    """One linear layer or convolution.

    Fields:
        weights: their number.
        quantized: whether it is held in anything but a plain floating tensor.
        bytes: in memory, of all the layer holds but its bias.
        signal, noise: sums of w^2 and of (w - what the layer computes with)^2, w being the float32 original.
    """

    weights: int
    quantized: bool
    bytes: int
    signal: float
    noise: float


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor; of a composed one, of all its parts."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))


@torch.no_grad()
def measure_layers(model: nn.Module, method: Method, dense: Path) -> dict[str, LayerMeasurement]:
    """Each layer with a weight matrix or kernel that the model still has, in module order, embeddings left out.

    Methods put classes of their own in the places of layers: places are found by the dense file's names. One dense
    weight is in memory at a time.

    Args:
        model: loaded by `method`.
        dense: the float32 model's safetensors file.
    """
    layers = {}
    with safe_open(dense, framework="pt") as file:
        names = file.keys()
        weights = {name for name in names if len(file.get_slice(name).get_shape()) > 1}
        for name, module in model.named_modules():
            bias = getattr(module, "bias", None)
            held = model_bytes(module) - (0 if bias is None else tensor_bytes(bias))
            if f"{name}.weight" in weights and held and not isinstance(module, nn.Embedding):
                original = file.get_tensor(f"{name}.weight")
                quantized = not is_plain(module)
                used = (method.weight(module) if quantized else module.weight).float()
                layers[name] = LayerMeasurement(
                    weights=original.numel(),
                    quantized=quantized,
                    bytes=held,
                    signal=float(original.double().square().sum()),
                    noise=float((original - used).double().square().sum()),
                )
    return layers


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer holds its weight in a plain floating tensor."""
    weight = layer._parameters.get("weight")
    return weight is not None and type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()


def sqnr_db(signal: float, noise: float) -> float | None:
    """Signal-to-quantization-noise ratio in decibels; None where there is no noise or no signal."""
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None
