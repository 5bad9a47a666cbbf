"""Turns a packed model back into an ordinary one."""

from __future__ import annotations

from typing import Any

from bitsfusion.artifact.guards import unguard
from bitsfusion.errors import InputError
from bitsfusion.nn.packed import PACKED_LAYERS, dense_layer
from bitsfusion.nn.replace import replace_module
from bitsfusion.nn.tied import untie_layers


def make_dense(model: Any) -> None:
    """Unpacks every layer of a loaded model, in place: ordinary layers with equal weights, in the dtype computed in.

    Memory grows to the dense model's, one layer at a time. What stands beside the packed layers stays, cached time
    features too: time layers that were replaced by rows are lost.

    Args:
        model: a loaded model; adapters on packed layers stay, on top of the dense ones.

    Raises:
        InputError: a layer is offloaded; the model is then unchanged.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, PACKED_LAYERS)}
    for name, layer in layers.items():
        if layer.packed.is_meta:
            raise InputError(f"{name}: got a layer that is offloaded, wanted it in memory: load without offloading")
    while layers:
        name, layer = layers.popitem()
        replace_module(model, name, dense_layer(layer))
    del layer
    untie_layers(model)
    unguard(model)
    for attribute in ("quantization_method", "is_quantized"):
        vars(model).pop(attribute, None)
