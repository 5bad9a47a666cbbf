"""Names and shapes of a model's tensors from its config alone, for the families whose blocks are few and settled.

What `Architecture.shapes` gives is what the library's class would build, or None: each config is read against the
values that are known to be understood here, and anything else is left to the class itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Shapes: TypeAlias = dict[str, tuple[int, ...]]
Check: TypeAlias = Callable[[Any], bool]

_MOST = 64  # blocks and layers of a kind


class NotKnownError(Exception):
    """A config that has to be left to the class itself."""


def number(value: Any) -> bool:
    """A plain number or a switch."""
    return isinstance(value, (int, float))


def number_or_none(value: Any) -> bool:
    """The same, or left out."""
    return value is None or isinstance(value, (int, float))


def size(value: Any) -> bool:
    """A positive whole number."""
    return type(value) is int and value > 0


def few(value: Any) -> bool:
    """So many blocks or layers of a kind, at most 64."""
    return type(value) is int and 0 < value <= _MOST


def sizes(value: Any) -> bool:
    """A short list of positive whole numbers."""
    return isinstance(value, (list, tuple)) and 0 < len(value) <= _MOST and all(size(each) for each in value)


def names(*known: str) -> Check:
    """A short list of some of these names."""
    return lambda value: isinstance(value, (list, tuple)) and all(each in known for each in value)


def only(*known: Any) -> Check:
    """One of these values, of the same type."""
    return lambda value: any(type(value) is type(each) and value == each for each in known)


def anything(value: Any) -> bool:
    """What neither shapes nor the class ask about."""
    return True


def checked(config: Mapping[str, Any], known: Mapping[str, tuple[Any, Check]]) -> dict[str, Any]:
    """The values of a config, with defaults where it is silent.

    Args:
        known: key -> default and check.

    Raises:
        NotKnownError: another key, or a value that a check does not pass.
    """
    if not config.keys() <= known.keys():
        raise NotKnownError
    values = {key: config.get(key, default) for key, (default, _) in known.items()}
    if not all(check(values[key]) for key, (_, check) in known.items()):
        raise NotKnownError
    return values


def need(fits: bool) -> None:
    """Leaves the config to the class unless it fits."""
    if not fits:
        raise NotKnownError


class Tensors:
    """The tensors so far, in module order."""

    def __init__(self) -> None:
        self.found: Shapes = {}

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        """A Linear layer."""
        self._add(name, (outputs, inputs), bias)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int = 3) -> None:
        """A Conv2d layer."""
        self._add(name, (outputs, inputs, kernel, kernel), True)

    def norm(self, name: str, channels: int, groups: int = 1) -> None:
        """A LayerNorm, or a GroupNorm."""
        need(channels % groups == 0)
        self._add(name, (channels,), True)

    def embedding(self, name: str, count: int, width: int) -> None:
        """An Embedding."""
        self._add(name, (count, width), False)

    def resnet(self, name: str, inputs: int, outputs: int, groups: int, time: int | None = None) -> None:
        """diffusers' ResnetBlock2D, with a projection of `time` values where it has one."""
        self.norm(f"{name}.norm1", inputs, groups)
        self.conv(f"{name}.conv1", inputs, outputs)
        if time is not None:
            self.linear(f"{name}.time_emb_proj", time, outputs)
        self.norm(f"{name}.norm2", outputs, groups)
        self.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            self.conv(f"{name}.conv_shortcut", inputs, outputs, 1)

    def _add(self, name: str, weight: tuple[int, ...], bias: bool) -> None:
        self.found[f"{name}.weight"] = weight
        if bias:
            self.found[f"{name}.bias"] = (weight[0],)
