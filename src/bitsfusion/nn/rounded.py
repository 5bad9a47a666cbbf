"""A layer that was rounded by whatever means: its levels, scales and bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bitsfusion.errors import InputError
from bitsfusion.nn.fake_quantized import FakeQuantizedLayer
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import dequantize


@dataclass(frozen=True)
class RoundedLayer:
    """A Linear or Conv2d layer in `bits` bits.

    Fields:
        bits: 1 to 8.
        codes: integers of the weight's shape.
        scale: [out] float32.
        bias: [out] float32; None for a layer without one.
    """

    bits: int
    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    @property
    def weight(self) -> Tensor:
        """[out, ...] float32. Rounding it by `scale` gives `codes` again: training can start from it."""
        return dequantize(self.codes, self.scale)


def put_rounded(model: nn.Module, layers: Mapping[str, RoundedLayer]) -> None:
    """Replaces layers by fake-quantized ones that hold these levels, scales and biases, in place.

    Raises:
        InputError: a name that is no such layer of the model, or another shape. The model is then unchanged.
    """
    modules = dict(model.named_modules())
    for name, layer in layers.items():
        found = modules.get(name)
        if not isinstance(found, (nn.Linear, nn.Conv2d)) or found.weight.shape != layer.codes.shape:
            got = "no such layer" if found is None else type(found).__name__
            raise InputError(f"{name}: got {got}, wanted a layer with weights of shape {list(layer.codes.shape)}")
    bits = {name: layer.bits for name, layer in layers.items()}
    fake_quantize_model(model, bits, scales={name: layer.scale for name, layer in layers.items()})
    for name, layer in layers.items():
        made: FakeQuantizedLayer = model.get_submodule(name)  # type: ignore[assignment]
        made.weight.data.copy_(layer.weight)
        if layer.bias is not None and made.bias is not None:
            made.bias.data.copy_(layer.bias)
