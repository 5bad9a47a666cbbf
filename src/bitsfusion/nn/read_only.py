"""A weight that may be looked at but not written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bitsfusion.errors import InputError

_SAME_DATA = (Tensor.data.__get__, Tensor.detach)  # type: ignore[attr-defined]


class ReadOnlyWeight(Tensor):
    """The weight unpacked from a layer's bits. It is a fresh copy: a write would be lost without a word.

    Whatever writes in place, PEFT's merging of an adapter above all, gets an InputError. Results of other operations
    are ordinary tensors.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        first = next(iter((*args, *(kwargs or {}).values())), None)
        if isinstance(first, cls) and _writes(func.__name__):
            raise InputError(
                "weight: got a write to the weight of a packed layer, wanted none: an adapter cannot be fused into "
                "packed bits; leave it unfused, or call dequantize() on the model first"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if func in _SAME_DATA else result


def _writes(name: str) -> bool:
    """Whether a tensor method of this name changes its first argument: `add_`, `__iadd__`, `__setitem__`, a setter."""
    if name.startswith("__"):
        return name in ("__set__", "__setitem__") or (name.startswith("__i") and name not in _NO_WRITES)
    return name.endswith("_")


_NO_WRITES = ("__index__", "__int__", "__invert__", "__init__", "__init_subclass__")
