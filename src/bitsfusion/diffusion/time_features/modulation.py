"""The time features of transformers: what their modulation layers give at each time step, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.architectures.layers import FIXED_BITS
from bitsfusion.architectures.registry import architecture_of
from bitsfusion.architectures.timing import Timing
from bitsfusion.errors import InputError


def timing_of(model: nn.Module) -> Timing | None:
    """Where a model's time step goes; None for UNets, and for classes whose layers depend on more."""
    family = architecture_of(model)
    return None if family is None else family.timing


def time_bits(model: nn.Module) -> int:
    """About what the layers of the time step have where they stay."""
    family = architecture_of(model)
    return FIXED_BITS if family is None else family.time_bits


def condition_of(model: Any, timing: Timing) -> str | None:
    """What makes this model's modulation depend on more than the step."""
    return timing.condition(model)


@torch.no_grad()
def modulation_outputs(model: Any, timing: Timing, timesteps: Tensor) -> Iterator[tuple[str, Tensor]]:
    """As `layers.time_outputs`, of a transformer."""
    reason = condition_of(model, timing)
    if reason is not None:
        raise InputError(
            f"time features: got a {type(model).__name__} with {reason}, so that they depend on more than the step"
        )
    embedded = timing.embedded(model, timesteps)
    for name, activation in timing.outputs_of(model).items():
        active = model.get_submodule(activation)(embedded) if activation else embedded
        yield name, embedded if name == timing.embedding else model.get_submodule(name)(active)


class Steps(nn.Module):
    """Stands where a model gives its time step: the features of that step.

    Fields:
        scale: what the model's number is multiplied by.
        embedding: values of the embedding, which come before the others, where the forward reads it as well; or 0.
    """

    def __init__(self, features: nn.Module, scale: float, embedding: int = 0) -> None:
        super().__init__()
        self._features, self.scale, self.embedding = (features,), scale, embedding  # registered elsewhere, once

    def forward(self, timestep: Tensor, *rest: Any, **named: Any) -> Tensor | tuple[Tensor, Tensor]:
        features: Tensor = self._features[0](timestep * self.scale)
        return (features[:, self.embedding :], features[:, : self.embedding]) if self.embedding else features

    def extra_repr(self) -> str:
        return f"scale {self.scale:g}"
