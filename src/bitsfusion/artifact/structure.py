"""Which tensors a packed folder must hold, from its config.json.

For models whose shapes follow from their config (`Architecture.shapes`), no model is built and torch is not imported,
as long as config and layers fit. Otherwise, and to say what does not fit, the model is built on meta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.artifact.container import StoredTensor
from bitsfusion.artifact.limits import MODEL_MODULES
from bitsfusion.artifact.model_config import named_architecture, plain_config
from bitsfusion.artifact.schema import (
    PACKED_SUFFIX,
    ROWS_TENSOR,
    TIME_TENSORS,
    PackedConfig,
    TimeBasisEntry,
    stored_tensor,
)


def expected_tensors(model_config: Mapping[str, Any], config: PackedConfig) -> dict[str, StoredTensor]:
    """Every tensor of a packed model, as in memory once decoded; layers in module order.

    Raises:
        ArtifactError: the config does not fit the model that it describes, or describes none.
    """
    architecture, plain = named_architecture(model_config), plain_config(model_config)
    shapes = architecture.shapes(plain)
    found = None if shapes is None or len(shapes) > MODEL_MODULES else _fitted(architecture, shapes, config)
    if found is not None:
        return found
    from bitsfusion.artifact.skeleton import empty_model, in_memory, make_packed  # which import torch

    model = empty_model(model_config)
    make_packed(model, config)
    return in_memory(model)


def _fitted(
    architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], config: PackedConfig
) -> dict[str, StoredTensor] | None:
    """The tensors of a model of these shapes packed as the config says; None where they do not fit each other."""
    weights = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) > 1
    }
    kept = {name: tuple(entry.shape) for name, entry in config.layers.items()}
    removed = {name: tuple(shape) for name, shape in config.removed.items()}
    timed = {name for name in weights if architecture.role(name) is LayerRole.TIME}
    features = sum(architecture.feature_values(name, weights[name][0]) for name in timed)
    if kept | removed != weights or kept.keys() & removed.keys():
        return None
    if (config.time_features.kind == "none") is architecture.timed:
        return None
    if removed.keys() != (timed if config.stores_features else set()):
        return None
    if config.stores_features and config.time_features.channels != features:
        return None
    found = {}
    for name, shape in shapes.items():
        owner, _, leaf = name.rpartition(".")
        if owner in removed:
            continue
        if owner in kept and leaf == "weight":
            size = config.layers[owner].size.bytes_in_memory
            found[owner + PACKED_SUFFIX] = stored_tensor(owner + PACKED_SUFFIX, (size,))
        else:
            found[name] = stored_tensor(name, shape)
    if config.stores_features:
        for name, shape in _feature_shapes(config).items():
            found[name] = stored_tensor(name, shape)
    return found


def _feature_shapes(config: PackedConfig) -> dict[str, tuple[int, ...]]:
    entry = config.time_features
    if isinstance(entry, TimeBasisEntry):
        shapes = (entry.channels,), (entry.rank, entry.channels), (entry.points, entry.rank)
        return dict(zip(TIME_TENSORS[1:], shapes, strict=True))
    return {ROWS_TENSOR: (len(entry.steps), entry.channels)}
