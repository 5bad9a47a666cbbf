"""A model without weights in the exact shapes that a packed file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bitsfusion.artifact.limits import bounded_construction, check_model_config, shown
from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.nn.packed import packed_layer
from bitsfusion.nn.replace import replace_module
from bitsfusion.time_features import Coverage, SamplerSteps, place_time_features, time_layers

MODEL_CLASSES = ("UNet2DConditionModel",)
"""The only classes that a config.json may name: a reader builds no other."""


def coverage_of(config: PackedConfig) -> Coverage:
    """The cached steps and their samplers; only for a config whose time features are cached."""
    features = config.time_features
    return Coverage(features.steps, tuple(SamplerSteps(entry.name, entry.steps) for entry in features.samplers))


def empty_model(model_config: Mapping[str, Any]) -> nn.Module:
    """The dense model of a config.json on meta: shapes, no memory, whatever the config asks for.

    Raises:
        ArtifactError: no model that is packed, a config it refuses, or one beyond `limits`.
    """
    import diffusers

    name = model_config.get("_class_name")
    if name not in MODEL_CLASSES:
        wanted = " or ".join(MODEL_CLASSES)
        raise ArtifactError(f"config.json: got _class_name {shown(repr(name), 80)}, wanted {wanted}")
    plain = {key: value for key, value in model_config.items() if key != "quantization_config"}
    check_model_config(plain)
    try:
        with torch.device("meta"), bounded_construction():
            model: nn.Module = getattr(diffusers, name).from_config(plain)
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"config.json: {name} refuses it: {shown(error)}") from None
    return model


def make_packed(model: nn.Module, config: PackedConfig) -> None:
    """Turns a model on meta into its packed form, in place; each buffer has the shape that the file's decodes to.

    Raises:
        ArtifactError: names a layer that the config and the model do not agree on, or that neither packs nor removes.
    """
    dense = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    shapes = {name: entry.shape for name, entry in config.layers.items()} | dict(config.removed)
    for name, shape in shapes.items():
        if name not in dense:
            raise ArtifactError(f"{name}: got a layer that the model does not have")
        if tuple(dense[name].weight.shape) != tuple(shape):
            raise ArtifactError(
                f"{name}: got shape {list(shape)}, wanted {list(dense[name].weight.shape)} as in the model"
            )
    unnamed = [name for name in dense if name not in shapes]
    if unnamed:
        raise ArtifactError(
            f"{unnamed[0]}: got no bits for this layer, wanted every Linear and Conv2d packed or removed"
        )
    cached = config.time_features.kind == "cached"
    expected = set(time_layers(model)) if cached else set()
    if set(config.removed) != expected or set(config.layers) & set(config.removed):
        wrong = sorted(set(config.removed) ^ expected) or sorted(set(config.layers) & set(config.removed))
        raise ArtifactError(
            f"{wrong[0]}: got removed and packed layers that do not fit {config.time_features.kind} time features"
        )
    for name, entry in config.layers.items():
        replace_module(model, name, packed_layer(dense[name], entry.bits))
    if cached:
        rows = torch.empty(
            len(config.time_features.steps), config.time_features.channels, dtype=torch.float16, device="meta"
        )
        try:
            place_time_features(model, rows, coverage_of(config))
        except InputError as error:
            raise ArtifactError(f"time_proj: {error}") from None
