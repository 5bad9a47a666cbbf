"""What is packed, layer by layer: a UNet in memory, or a component that is read from its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.architectures.base import Architecture, without_steering
from bitsfusion.architectures.layers import EMBEDDING_ROLES, FIXED_BITS
from bitsfusion.architectures.registry import denoiser_of, layer_role
from bitsfusion.artifact.skeleton import empty_model
from bitsfusion.diffusion.samplers import Coverage
from bitsfusion.diffusion.time_features import (
    TimeBasis,
    TimeFeatureBasis,
    TimeFeatureRows,
    time_feature_rows,
    time_layers,
)
from bitsfusion.errors import InputError
from bitsfusion.nn.fake_quantized import FakeQuantizedConv2d, FakeQuantizedLinear
from bitsfusion.nn.packed import PackedConv2d, PackedLinear, packed_buffer
from bitsfusion.nn.replace import replace_module
from bitsfusion.nn.rounded import RoundedLayer
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import ScaleInit, quantize
from bitsfusion.pipelines.model_folder import ModelFolder

Features: TypeAlias = Coverage | TimeBasis | None
"""The steps whose rows are stored exactly, a basis for every step, or None: the time layers stay, at 8 bits."""

Stored: TypeAlias = tuple[Tensor, Coverage] | TimeBasis | None
"""What is stored for them: float16 rows [steps, channels] with their steps, or a basis."""

_FIXED_SCALE = ScaleInit.ALTERNATING  # of layers at 8 bits that no recipe names: the exact search gains 0.1 dB there


@dataclass(frozen=True)
class ModelParts:
    """A component about to be packed.

    Fields:
        architecture: its class.
        config: its own config, plain JSON.
        kept: the shape of the weight of every layer that is packed, in module order.
        removed: the same of the layers that stored time features replace.
        layer: b and the packed buffer of a kept layer; made when asked for, and by several threads.
        others: every other parameter, float32 and finite.
        features: see `Stored`.
    """

    architecture: Architecture
    config: Mapping[str, Any]
    kept: Mapping[str, tuple[int, ...]]
    removed: Mapping[str, tuple[int, ...]]
    layer: Callable[[str], tuple[int, Tensor]]
    others: Mapping[str, Tensor]
    features: Stored


def parts_of_model(unet: nn.Module, features: Features) -> ModelParts:
    """A fake-quantized (or packed) UNet in memory, which is not changed.

    Args:
        features: see `Features`; layers that are quantized already keep their bits. A basis is of this very UNet.

    Raises:
        InputError: names a layer that is not quantized (when asked for) or a tensor that is not finite.
    """
    config = json.loads(unet.to_json_string())  # type: ignore[operator]
    dense, stored = empty_model(config), _features_of_model(unet, features)
    layer, state = (lambda name: _buffer(name, unet.get_submodule(name))), unet.state_dict()
    return _parts(denoiser_of(unet), _plain_config(dense), dense, layer, state.__getitem__, stored)


def parts_of_folder(
    folder: ModelFolder,
    bits: Mapping[str, int],
    method: ScaleInit,
    features: Features = None,
    rounded: Mapping[str, RoundedLayer] | None = None,
) -> ModelParts:
    """A full-precision component on disk; each layer is read, quantized and forgotten.

    Args:
        bits: layer name -> b; time and conditioning layers need none and get 8.
        method: how scales are found.
        features: as `parts_of_model`; None for what is no UNet.
        rounded: layers that were rounded otherwise; they need no bits, and their biases take the place of the file's.

    Raises:
        InputError: names a layer without bits or a tensor that is not finite (of a layer when asked for), or time
            features that cannot be cached.
    """
    architecture = folder.architecture
    removed = frozenset() if features is None else frozenset(time_layers(folder.skeleton))
    for name in architecture.modules(folder.skeleton):
        given = name in bits or name in (rounded or {}) or name in removed
        if not given and architecture.role(name) not in EMBEDDING_ROLES:
            raise InputError(f"{name}: got no bits for this layer, wanted 1 to 8")

    def layer(name: str) -> tuple[int, Tensor]:
        if rounded is not None and name in rounded:
            done = rounded[name]
            return done.bits, packed_buffer(done.codes, done.scale, done.bits)
        weight = folder.tensor(f"{name}.weight")
        chosen = bits.get(name, FIXED_BITS)
        scale = layer_scale(name, weight, chosen, method if name in bits else _FIXED_SCALE)
        return chosen, packed_buffer(quantize(weight, scale, chosen), scale, chosen)

    def tensor(name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        done = (rounded or {}).get(owner)
        return done.bias if done is not None and done.bias is not None and leaf == "bias" else folder.tensor(name)

    stored: tuple[Tensor, Coverage] | TimeBasis | None
    if isinstance(features, Coverage):
        stored = time_feature_rows(timed_model(folder), features.steps), features
    else:
        stored = features
    config = written_config(architecture, folder.skeleton, folder.config)
    return _parts(architecture, config, folder.skeleton, layer, tensor, stored)


def with_float16_scales(parts: ModelParts) -> ModelParts:
    """The same, every scale rounded to the nearest float16 number: what GGUF's blocks hold without loss.

    Raises:
        InputError: names a layer with a scale that float16 cannot hold (when asked for).
    """

    def layer(name: str) -> tuple[int, Tensor]:
        bits, buffer = parts.layer(name)
        buffer = buffer.clone()
        scales = buffer[: 4 * parts.kept[name][0]].view(torch.float32)
        rounded = scales.half().float()
        if not bool(torch.isfinite(rounded).all()):
            raise InputError(f"{name}: got a scale of {scales.abs().max():g}, wanted one that float16 can hold")
        scales.copy_(rounded)
        return bits, buffer

    return replace(parts, layer=layer)


def timed_model(folder: ModelFolder) -> nn.Module:
    """The component on meta but for its time layers, which are read; a transformer's modulation whenever it is asked.

    Raises:
        InputError: names a tensor that is not finite.
    """
    timed = folder.architecture.build(folder.config)
    timing = folder.architecture.timing
    outputs = {} if timing is None else timing.outputs_of(timed)
    for name in outputs:
        replace_module(timed, name, _Read(folder, name, timed.get_submodule(name)))
    for name in time_layers(timed):
        if name in outputs:
            continue
        part = timed.get_submodule(name)
        tensors = {leaf: _finite(f"{name}.{leaf}", folder.tensor(f"{name}.{leaf}")) for leaf in part.state_dict()}
        part.load_state_dict(tensors, assign=True)
    return timed


class _Read(nn.Linear):
    """A linear layer on meta whose weight is read for each forward and not kept: modulation has billions of weights."""

    def __init__(self, folder: ModelFolder, name: str, layer: Any) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self._folder, self._name = folder, name

    def forward(self, input: Tensor) -> Tensor:
        leaves = ("weight", "bias") if self.bias is not None else ("weight",)
        tensors = [_finite(f"{self._name}.{leaf}", self._folder.tensor(f"{self._name}.{leaf}")) for leaf in leaves]
        return functional.linear(input, *tensors)


def _plain_config(model: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(model.to_json_string())
    config.pop("_name_or_path", None)
    return config


def written_config(architecture: Architecture, model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a packed folder says of the model beside its quantization.

    Of transformers' models with the class, which their configs may leave out, and in float32 as `copy_components` has
    it.

    Args:
        model: made from `config`, on meta too.
    """
    if architecture.library == "diffusers":
        return _plain_config(model)
    config = without_steering(config)
    config.pop("torch_dtype", None)  # its name before transformers 5
    return {**config, "architectures": [architecture.name], "dtype": "float32"}


def _parts(
    architecture: Architecture,
    config: Mapping[str, Any],
    dense: nn.Module,
    layer: Callable[[str], tuple[int, Tensor]],
    tensor: Callable[[str], Tensor],
    features: Stored,
) -> ModelParts:
    shapes = {name: tuple(module.weight.shape) for name, module in architecture.modules(dense).items()}
    removed = {} if features is None else {name: shapes[name] for name in time_layers(dense)}
    others, passed_over = {}, architecture.passed_over(dense)
    for name in dense.state_dict():
        owner, _, leaf = name.rpartition(".")
        if name in passed_over:
            continue
        if owner not in removed and (owner not in shapes or leaf == "bias"):
            others[name] = _other(name, tensor(name))
    kept = {name: shape for name, shape in shapes.items() if name not in removed}
    return ModelParts(architecture, config, kept, removed, layer, others, features)


def _other(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise InputError(
            f"{name}: got a tensor of {tensor.dtype}, wanted only floating parameters beside the packed layers"
        )
    return _finite(name, tensor.detach().to("cpu", torch.float32).contiguous())


def _features_of_model(unet: nn.Module, features: Features) -> Stored:
    """What to store, of a UNet with its time layers or of one where they are replaced already."""
    placed = getattr(unet, "time_proj", None)
    if isinstance(placed, TimeFeatureBasis) and isinstance(features, TimeBasis):
        return features
    if isinstance(placed, (TimeFeatureRows, TimeFeatureBasis)):
        wanted = "time layers" if features is None else f"features of {features}"
        if isinstance(placed, TimeFeatureRows) and isinstance(features, Coverage):
            missing = [step for step in features.steps if step not in placed.coverage.steps]
            if not missing:
                picked = [placed.coverage.steps.index(step) for step in features.steps]
                return placed.rows[picked].to("cpu", torch.float16), features
            wanted = f"time step {missing[0]:g}"
        raise InputError(
            f"time features: got a UNet cached for {placed.covered}, wanted its {wanted}: pack from before caching"
        )
    return (time_feature_rows(unet, features.steps).cpu(), features) if isinstance(features, Coverage) else features


def _buffer(name: str, layer: nn.Module) -> tuple[int, Tensor]:
    """b and the packed buffer of one kept layer."""
    if isinstance(layer, (PackedLinear, PackedConv2d)):
        return layer.bits, layer.packed.cpu()
    if isinstance(layer, (FakeQuantizedLinear, FakeQuantizedConv2d)):
        weight, bits = _finite(name, layer.weight.detach()), layer.bits
        scale = _finite(name, layer.scale.detach())
    elif isinstance(layer, nn.Linear) and layer_role(name) in EMBEDDING_ROLES:
        weight, bits = layer.weight.detach(), FIXED_BITS
        scale = layer_scale(name, weight, bits, _FIXED_SCALE)
    else:
        raise InputError(
            f"{name}: got a dense {type(layer).__name__}, wanted every layer quantized: give it bits in the recipe"
        )
    return bits, packed_buffer(quantize(weight, scale, bits), scale, bits)


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name}: got NaN or infinite values, wanted finite weights and scales")
    return tensor
