"""A UNet in memory, or components on disk -> a packed diffusers folder, layer by layer, whole or not at all."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from bitsfusion.architectures.registry import denoiser_of
from bitsfusion.artifact.hashes import write_hashes
from bitsfusion.artifact.parts import Features, ModelParts, parts_of_model
from bitsfusion.artifact.payload import buffer_hash, check_scales, others_hash
from bitsfusion.artifact.schema import (
    CONFIG_FILE,
    PACKED_SUFFIX,
    ROWS_TENSOR,
    PackedConfig,
    PackedEntry,
    SamplerEntry,
    TimeBasisEntry,
    TimeFeatures,
    TimeFeaturesEntry,
)
from bitsfusion.artifact.target import check_target
from bitsfusion.artifact.tensors import as_array, as_arrays, encode_layer
from bitsfusion.artifact.weight_file import write_weights
from bitsfusion.diffusion.samplers import SamplerSteps
from bitsfusion.diffusion.time_features import Cover, TimeBasis, choose_features
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.io.ahead import ahead
from bitsfusion.io.atomic import atomic_folder
from bitsfusion.packing.accounting import SCALE_BYTES
from bitsfusion.pipelines.copying import copy_components
from bitsfusion.pipelines.folder import Form, PipelineFolder
from bitsfusion.progress import Progress, silent

PAPER_SAMPLERS = (SamplerSteps("pndm", 50),)
_THREADS = 4  # each holds a layer and its temporaries


def write_pipeline(
    pipeline: Any,
    denoiser: nn.Module,
    folder: Path | str,
    samplers: Cover = PAPER_SAMPLERS,
    *,
    source_sha256: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> PackedConfig:
    """Writes `pipeline` with `denoiser` packed in the place of its own; every other component as it is.

    Args:
        pipeline: a diffusers pipeline. Neither it nor `denoiser` is changed.
        denoiser: its own with every layer that is packed fake-quantized; its time layers need not be.
        folder: taken over as a whole when everything is written; an older packed folder there is replaced.
        samplers: what to store of the time features, see `Cover`, on the pipeline's own noise schedule.
        source_sha256: of what the model was made from.
        provenance: plain JSON to keep with it.

    Returns:
        What the folder says about itself.

    Raises:
        InputError: names a layer that is not quantized or not finite, a sampler, or a folder that is something else.
        BitsFusionError: the disk is full or the folder cannot be written; nothing was changed.
    """
    packed = denoiser_of(denoiser).component
    if packed not in pipeline.components:
        raise InputError(f"pipeline: got a {type(pipeline).__name__} without a {packed}, wanted one with it")
    choice = choose_features(denoiser, samplers, pipeline.scheduler.config)
    if choice.note is not None:
        provenance = {**(provenance or {}), "notes": [*(provenance or {}).get("notes", []), choice.note]}
    parts = parts_of_model(denoiser, choice.features)
    with _new_folder(folder) as temporary:
        pipeline.save_config(temporary)
        for name, component in pipeline.components.items():
            if name != packed and component is not None and hasattr(component, "save_pretrained"):
                safe = "safe_serialization" in inspect.signature(component.save_pretrained).parameters
                component.save_pretrained(temporary / name, **({"safe_serialization": True} if safe else {}))
        (temporary / packed).mkdir()
        made = _write(temporary / packed, parts, source_sha256, provenance)
        write_hashes(temporary)
        return made


def write_model(
    model: nn.Module,
    folder: Path | str,
    features: Features,
    *,
    source_sha256: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> PackedConfig:
    """Writes a model alone as a diffusers model folder; see `write_pipeline`.

    Args:
        features: see `Features`; `choose_features` finds them.
    """
    parts = parts_of_model(model, features)
    with _new_folder(folder) as temporary:
        return _write(temporary, parts, source_sha256, provenance)


def write_parts(
    parts: Mapping[str, ModelParts],
    source: PipelineFolder,
    folder: Path | str,
    *,
    source_sha256: str | None = None,
    provenance: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress = silent,
) -> dict[str, PackedConfig]:
    """Writes the pipeline `source` with some components packed; the others are copied as files.

    Of a component alone, or a trainer's checkpoint of one, a model folder is written.

    Args:
        parts: component name -> what is packed in its place (`parts_of_folder`, `parts_of_model`), layer by layer.
        source: no model of it is loaded.
        provenance: component name -> plain JSON to keep with it.
        progress: told after every layer, of all components together.

    Returns:
        What each packed component says about itself.

    Raises:
        InputError: as `write_pipeline`, or a component that is missing or has no safetensors.
        BitsFusionError: as `write_pipeline`.
    """
    total, done = sum(len(part.kept) for part in parts.values()), 0
    configs = {}
    with _new_folder(folder) as temporary:
        if source.form is Form.PIPELINE:
            copy_components(source, temporary, without=parts)
        for name, part in parts.items():
            place = temporary / name if source.form is Form.PIPELINE else temporary
            place.mkdir(exist_ok=True)
            tell = _shifted(progress, done, total)
            configs[name] = _write(place, part, source_sha256, (provenance or {}).get(name), tell)
            done += len(part.kept)
        if source.form is Form.PIPELINE:
            write_hashes(temporary)
    return configs


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _new_folder(folder: Path | str) -> Any:
    """`atomic_folder`, where nothing but a packed model would be replaced."""
    check_target(Path(folder))
    return atomic_folder(Path(folder))


def _write(
    folder: Path,
    parts: ModelParts,
    source_sha256: str | None,
    provenance: Mapping[str, Any] | None,
    progress: Progress = silent,
) -> PackedConfig:
    """config.json and the weight file of one model."""
    layers: dict[str, PackedEntry] = {}
    others = dict(parts.others)
    features, stored = _time_features(parts)
    others |= stored

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, entry, payload in _packed_layers(parts):
            layers[name] = entry
            yield name + PACKED_SUFFIX, payload
            progress(len(layers), len(parts.kept))
        yield from others.items()

    write_weights(folder / parts.architecture.weights, tensors())
    config = PackedConfig(
        format_version=features.version,
        layers=layers,
        removed=dict(parts.removed),
        time_features=features,
        others_sha256=others_hash(as_arrays(others)),
        source_sha256=source_sha256,
        provenance=dict(provenance or {}),
    )
    (folder / CONFIG_FILE).write_text(config_text(parts.config, config), encoding="utf-8")
    return config


def config_text(model_config: Mapping[str, Any], config: PackedConfig) -> str:
    """The config.json of a packed model."""
    return _readable_json({**model_config, "quantization_config": config.model_dump(mode="json")}) + "\n"


def _time_features(parts: ModelParts) -> tuple[TimeFeatures, dict[str, Tensor]]:
    """What the config says of the time features, and their tensors."""
    if isinstance(parts.features, TimeBasis):
        tensors = {f"time_proj.{name}": tensor.cpu() for name, tensor in parts.features.tensors().items()}
        return basis_entry(parts.features), tensors
    if parts.features is not None:
        rows, coverage = parts.features
        samplers = tuple(SamplerEntry(name=s.name, steps=s.steps) for s in coverage.samplers)
        rows_entry = TimeFeaturesEntry(kind="cached", steps=coverage.steps, samplers=samplers, channels=rows.shape[1])
        return rows_entry, {ROWS_TENSOR: rows}
    return TimeFeaturesEntry(kind="layers_8bit" if parts.architecture.timed else "none"), {}


def basis_entry(basis: TimeBasis) -> TimeBasisEntry:
    """What the config says of a basis."""
    knots = basis.knots
    return TimeBasisEntry(
        kind="basis",
        channels=basis.channels,
        rank=basis.rank,
        points=knots.points,
        start=knots.start,
        spacing=knots.spacing,
        error=basis.error,
    )


def _packed_layers(parts: ModelParts) -> Iterator[tuple[str, PackedEntry, Tensor]]:
    """Name, entry and bytes on disk of every layer, in order; a few at a time on threads, no more in memory."""

    def work(layer: tuple[str, tuple[int, ...]]) -> tuple[str, PackedEntry, Tensor]:
        name, shape = layer
        bits, buffer = parts.layer(name)
        array = as_array(name, buffer)
        try:
            check_scales(array[: SCALE_BYTES * shape[0]].view(np.float32), bits)
        except ArtifactError as error:
            raise InputError(f"{name}: {error}") from None
        entry = PackedEntry(bits=bits, shape=shape, sha256=buffer_hash(array))
        return name, entry, encode_layer(buffer, shape[0])

    return ahead(work, parts.kept.items(), _THREADS)


def _readable_json(value: Any, depth: int = 0) -> str:
    """Objects over lines, one layer a line; lists and what lies deeper on one line."""
    if not isinstance(value, dict) or not value or depth > 2:
        return json.dumps(value, allow_nan=False)
    inner = ",\n".join(
        f"{' ' * (depth + 1)}{json.dumps(key)}: {_readable_json(item, depth + 1)}" for key, item in value.items()
    )
    return "{\n" + inner + "\n" + " " * depth + "}"
