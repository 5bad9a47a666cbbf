"""The quantizer: balance-integer levels, scales and the straight-through fake quantization (sections 3.1 and 4.1)."""

from bitsfusion.numerics.levels import MAX_BITS, MIN_BITS, check_bits, half_levels, level_bits, level_count
from bitsfusion.numerics.quantize import dequantize, fake_quantize, fake_quantize_gradients, quantize
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
    "widened",
]
