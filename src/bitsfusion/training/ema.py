"""The exponential moving average of weights and scales."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from bitsfusion.training.sharding import shard_of


class ExponentialMovingAverage:
    """Averages of named parameters, in float32 on their device.

    At step n (from 1) the decay is min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        named = list(parameters)
        self._names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._averages = [parameter.detach().clone() for parameter in self._parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the averages towards the parameters as they stand after optimizer step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, [p.detach() for p in self._parameters], 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over averages saved by `state`."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(shard_of(state[name], average))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters hold the averages, and their own values again afterwards; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, parameter in enumerate(self._parameters):
            parameter.data, self._averages[index] = self._averages[index], parameter.data

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Puts the averages in the place of the parameters' values."""
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            parameter.copy_(average)
