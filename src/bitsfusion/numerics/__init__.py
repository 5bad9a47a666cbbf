"""The quantizer: balance-integer levels, scales and the straight-through fake quantization (sections 3.1 and 4.1)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bitsfusion.numerics.levels import MAX_BITS, MIN_BITS, check_bits, half_levels, level_bits, level_count

if TYPE_CHECKING:
    from bitsfusion.numerics.quantizer import dequantize, fake_quantize, fake_quantize_gradients, quantize, rounded
    from bitsfusion.numerics.scale import ScaleInit, initial_scale, widened

__all__ = [
    "MAX_BITS",
    "MIN_BITS",
    "ScaleInit",
    "check_bits",
    "dequantize",
    "fake_quantize",
    "fake_quantize_gradients",
    "half_levels",
    "initial_scale",
    "level_bits",
    "level_count",
    "quantize",
    "rounded",
    "widened",
]

_SCALE = ("ScaleInit", "initial_scale", "widened")


def __getattr__(name: str) -> object:
    """What computes needs torch, and is imported when it is asked for; levels are numbers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{'scale' if name in _SCALE else 'quantizer'}")
    return getattr(module, name)
