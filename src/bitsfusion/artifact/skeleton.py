"""A model without weights, in the exact shapes of a packed file."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from bitsfusion.architectures.base import TRAINING_COUNTER
from bitsfusion.architectures.registry import ARCHITECTURES, architecture_of
from bitsfusion.artifact.container import StoredTensor
from bitsfusion.artifact.limits import MODEL_MODULES, shown
from bitsfusion.artifact.model_config import named_architecture, plain_config
from bitsfusion.artifact.schema import PackedConfig, TimeBasisEntry, stored_tensor
from bitsfusion.diffusion.samplers import Coverage, SamplerSteps
from bitsfusion.diffusion.time_features import (
    TimeBasis,
    TimeFeatureBasis,
    TimeFeatureRows,
    place_time_features,
    time_layers,
)
from bitsfusion.diffusion.time_features.spline import TAPS, Knots
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.nn.packed import packed_layer
from bitsfusion.nn.replace import replace_module
from bitsfusion.nn.tied import tie_layers


@contextmanager
def bounded_construction() -> Iterator[None]:
    """Within it, this thread builds at most `MODEL_MODULES` modules: a config may ask for millions.

    Raises:
        ArtifactError: at the first one too many.
    """
    thread, count = threading.get_ident(), 0

    def hook(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > MODEL_MODULES:
            raise ArtifactError(f"config.json: got a model of more than {MODEL_MODULES} modules")

    handle = register_module_module_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def covered_steps(config: PackedConfig) -> str:
    """The steps of stored time features, in words; for a config that stores some."""
    return str(_stored_features(config).covered)


def _stored_features(config: PackedConfig) -> TimeFeatureRows | TimeFeatureBasis:
    """The module of stored features, on meta."""
    entry = config.time_features

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float16, device="meta")

    if isinstance(entry, TimeBasisEntry):
        knots = Knots(entry.start, entry.spacing, entry.points - TAPS + 1)
        mean, directions = empty(entry.channels), empty(entry.rank, entry.channels)
        return TimeFeatureBasis(TimeBasis(mean, directions, empty(entry.points, entry.rank), knots, entry.error))
    samplers = tuple(SamplerSteps(sampler.name, sampler.steps) for sampler in entry.samplers)
    return TimeFeatureRows(empty(len(entry.steps), entry.channels), Coverage(entry.steps, samplers))


def empty_model(model_config: Mapping[str, Any]) -> nn.Module:
    """The dense model of a config.json on meta: shapes, no memory, whatever the config asks for.

    Raises:
        ArtifactError: no model that is packed, a config it refuses, or one beyond `limits`.
    """
    architecture, plain = named_architecture(model_config), plain_config(model_config)
    try:
        with bounded_construction():
            return architecture.build(plain)
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"config.json: {architecture.name} refuses it: {shown(error)}") from None


def make_packed(model: nn.Module, config: PackedConfig) -> None:
    """Turns a model on meta into its packed form, in place; each buffer has the shape that the file's decodes to.

    Raises:
        ArtifactError: names a layer that the config and the model do not agree on, or that neither packs nor removes.
    """
    architecture = architecture_of(model)
    if architecture is None:
        raise ArtifactError(f"model: got a {type(model).__name__}, wanted one of {', '.join(ARCHITECTURES)}")
    dense = architecture.modules(model)
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
        kinds = " and ".join(architecture.layers)
        raise ArtifactError(f"{unnamed[0]}: got no bits for this layer, wanted every {kinds} packed or removed")
    allowed = ["basis", "cached", "layers_8bit"] if architecture.timed else ["none"]
    if architecture.timing is not None:
        allowed += ["basis", "cached"]
    if config.time_features.kind not in allowed:
        wanted = ", ".join(allowed[:-1]) + f" or {allowed[-1]}" if allowed[1:] else allowed[0]
        raise ArtifactError(f"time features: got {config.time_features.kind} in a {architecture.name}, wanted {wanted}")
    expected = set(time_layers(model)) if config.stores_features else set()
    if set(config.removed) != expected or set(config.layers) & set(config.removed):
        wrong = sorted(set(config.removed) ^ expected) or sorted(set(config.layers) & set(config.removed))
        raise ArtifactError(
            f"{wrong[0]}: got removed and packed layers that do not fit {config.time_features.kind} time features"
        )
    for name, entry in config.layers.items():
        replace_module(model, name, packed_layer(dense[name], entry.bits))
    tie_layers(model, architecture.tied(model))
    for module in model.modules():
        if TRAINING_COUNTER in module._buffers:
            module._non_persistent_buffers_set.add(TRAINING_COUNTER)
    if config.stores_features:
        try:
            place_time_features(model, _stored_features(config))
        except InputError as error:
            raise ArtifactError(f"time_proj: {error}") from None


def in_memory(model: nn.Module) -> dict[str, StoredTensor]:
    """Every tensor of a packed model's state dict, as files hold it but for packed layers, which are as in memory."""
    return {name: stored_tensor(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
