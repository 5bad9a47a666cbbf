"""Puts quantized layers in the place of a model's own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from bitsfusion.errors import InputError
from bitsfusion.nn.fake_quantized import FakeQuantizedConv2d, FakeQuantizedLayer, FakeQuantizedLinear
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import ScaleInit, check_bits


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Makes `module` the submodule of `model` called `name` (dotted)."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def layers_of(model: nn.Module, bits: Mapping[str, int]) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that `bits` names, in its order.

    Raises:
        InputError: a name that is no Linear or Conv2d of the model, or bits out of range.
    """
    modules, found = dict(model.named_modules()), {}
    for name, chosen in bits.items():
        layer = modules.get(name)
        check_bits(chosen, name)
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            got = "no such layer" if layer is None else type(layer).__name__
            raise InputError(f"{name}: got {got}, wanted a Linear or Conv2d layer of the model")
        found[name] = layer
    return found


def fake_quantize_model(
    model: nn.Module,
    bits: Mapping[str, int],
    method: ScaleInit = ScaleInit.EXACT,
    scales: Mapping[str, Tensor] | None = None,
) -> None:
    """Replaces each layer named in `bits` by its fake-quantized form, in place; weights are taken over.

    Args:
        model: holds a Linear or Conv2d under every name.
        bits: layer name -> 1..8.
        method: how a scale is found from the weight.
        scales: layer name -> [out] float32, used as they are where given.

    Raises:
        InputError: a name that is no Linear or Conv2d of the model, bits out of range, weights that are
            not finite. The model is then unchanged.
    """
    made: dict[str, FakeQuantizedLayer] = {}
    for name, layer in layers_of(model, bits).items():
        layer_bits = bits[name]
        scale = (scales or {}).get(name)
        if scale is None:
            scale = layer_scale(name, layer.weight, layer_bits, method)
        if isinstance(layer, nn.Linear):
            made[name] = FakeQuantizedLinear.from_layer(layer, layer_bits, scale)
        else:
            made[name] = FakeQuantizedConv2d.from_layer(layer, layer_bits, scale)
    for name, quantized in made.items():
        replace_module(model, name, quantized)


def fake_quantized_layers(model: nn.Module) -> dict[str, FakeQuantizedLayer]:
    """Every fake-quantized layer of `model` by name, in module order."""
    kinds = (FakeQuantizedLinear, FakeQuantizedConv2d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
