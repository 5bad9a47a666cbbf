"""Layers that use another layer's weight: a text encoder's token embedding under a second name, or as its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.nn.packed import PackedEmbedding, PackedLinear
from bitsfusion.nn.replace import replace_module


class TiedLayer(nn.Module):
    """An embedding or a linear layer without a weight of its own.

    Fields:
        source: the name of the packed layer whose weight it uses, which is no submodule: it is stored once.
        projects: whether it is linear; else it is looked up.
    """

    def __init__(self, source: str, layer: PackedEmbedding | PackedLinear, projects: bool) -> None:
        super().__init__()
        self.source, self.projects = source, projects
        self._layer = (layer,)  # in a tuple, so that it is not registered twice

    @property
    def weight(self) -> Tensor:
        """The source's, unpacked."""
        return self._layer[0].weight

    def forward(self, input: Tensor) -> Tensor:
        if self.projects:
            return functional.linear(input, self._layer[0].unpack_weight(input.dtype))
        looked_up: Tensor = self._layer[0](input)
        return looked_up

    def extra_repr(self) -> str:
        return f"the weight of {self.source}"


def tie_layers(model: Any, tied: Mapping[str, str]) -> None:
    """Puts a `TiedLayer` in the place of every layer that uses another's weight, in place.

    Args:
        model: with its packed layers; its library is told that nothing is left to tie.
        tied: name -> the name of the layer whose weight it uses.
    """
    for name, source in tied.items():
        projects = isinstance(model.get_submodule(name), nn.Linear)
        replace_module(model, name, TiedLayer(source, model.get_submodule(source), projects))
    if tied:
        model.all_tied_weights_keys, model._tied_weights_keys = {}, {}


def untie_layers(model: Any) -> None:
    """Ordinary layers that share the dense source's weight, in the place of every `TiedLayer`."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, TiedLayer)}
    for name, layer in layers.items():
        source = model.get_submodule(layer.source)
        made: nn.Module = source
        if layer.projects:
            weight: Any = source.weight
            made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            made.weight = weight
        replace_module(model, name, made)
    if layers:
        vars(model).pop("_tied_weights_keys", None)
        tied = {f"{name}.weight": f"{layer.source}.weight" for name, layer in layers.items()}
        model.all_tied_weights_keys = tied
