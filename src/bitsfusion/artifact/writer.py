"""A trained, fake-quantized UNet -> a packed diffusers folder, whole or not at all."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bitsfusion.artifact.payload import buffer_hash, encode_layer, others_hash
from bitsfusion.artifact.reader import open_folder
from bitsfusion.artifact.schema import (
    CONFIG_FILE,
    PACKED_SUFFIX,
    ROWS_TENSOR,
    WEIGHTS_FILE,
    PackedConfig,
    PackedEntry,
    SamplerEntry,
    TimeFeaturesEntry,
)
from bitsfusion.artifact.skeleton import empty_model
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.files import atomic_folder
from bitsfusion.nn.fake_quantized import FakeQuantizedConv2d, FakeQuantizedLinear
from bitsfusion.nn.packed import PackedConv2d, PackedLinear, packed_buffer
from bitsfusion.numerics import ScaleInit, initial_scale, quantize
from bitsfusion.time_features import Coverage, SamplerSteps, cover, time_feature_rows, time_layers
from bitsfusion.time_features.cache import TimeFeatureRows

TIME_LAYER_BITS = 8
PAPER_SAMPLERS = (SamplerSteps("pndm", 50),)


def write_pipeline(
    pipeline: Any,
    unet: nn.Module,
    folder: Path | str,
    samplers: Iterable[SamplerSteps | tuple[str, int]] | None = PAPER_SAMPLERS,
    *,
    source_sha256: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> PackedConfig:
    """Writes `pipeline` with `unet` packed in the place of its own; every other component as it is.

    Args:
        pipeline: a diffusers pipeline with a component `unet`. Neither it nor `unet` is changed.
        unet: the same UNet with every Linear and Conv2d fake-quantized; its time layers need not be.
        folder: taken over as a whole when everything is written; an older packed folder there is replaced.
        samplers: what to cache the time features for, on the pipeline's own noise schedule; None keeps the time
            layers at 8 bits instead, for any sampler.
        source_sha256: of what the model was made from.
        provenance: plain JSON to keep with it.

    Returns:
        What the folder says about itself.

    Raises:
        InputError: names a layer that is not quantized or not finite, a sampler, or a folder that is something else.
        BitsFusionError: the disk is full or the folder cannot be written; nothing was changed.
    """
    if "unet" not in pipeline.components:
        raise InputError(f"pipeline: got a {type(pipeline).__name__} without a unet, wanted one with it")
    coverage = None if samplers is None else cover(samplers, pipeline.scheduler.config)
    tensors, config = _packed_tensors(unet, coverage, source_sha256, provenance)
    _check_target(Path(folder))
    with atomic_folder(Path(folder)) as temporary:
        pipeline.save_config(temporary)
        for name, component in pipeline.components.items():
            if name != "unet" and component is not None and hasattr(component, "save_pretrained"):
                safe = "safe_serialization" in inspect.signature(component.save_pretrained).parameters
                component.save_pretrained(temporary / name, **({"safe_serialization": True} if safe else {}))
        (temporary / "unet").mkdir()
        _write(temporary / "unet", unet, tensors, config)
    return config


def write_model(
    unet: nn.Module,
    folder: Path | str,
    coverage: Coverage | None,
    *,
    source_sha256: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> PackedConfig:
    """Writes the UNet alone as a diffusers model folder; see `write_pipeline`.

    Args:
        coverage: the time steps to cache (`bitsfusion.time_features.cover`); None keeps the time layers at 8 bits.
    """
    tensors, config = _packed_tensors(unet, coverage, source_sha256, provenance)
    _check_target(Path(folder))
    with atomic_folder(Path(folder)) as temporary:
        _write(temporary, unet, tensors, config)
    return config


def _check_target(folder: Path) -> None:
    """A typing slip must not replace someone's home, nor the model that is being packed."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: got a file, wanted a folder")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            open_folder(folder)
        except ArtifactError:
            pass  # packed but broken: may be replaced
        except InputError:
            raise InputError(f"{folder}: got a folder with other files, wanted a new, empty or packed one") from None


def _write(folder: Path, unet: nn.Module, tensors: Mapping[str, Tensor], config: PackedConfig) -> None:
    model_config = json.loads(unet.to_json_string())  # type: ignore[operator]
    model_config.pop("_name_or_path", None)
    model_config["quantization_config"] = config.model_dump(mode="json")
    (folder / CONFIG_FILE).write_text(_readable_json(model_config) + "\n", encoding="utf-8")
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(dict(tensors), {"format": "pt"}))


def _readable_json(value: Any, depth: int = 0) -> str:
    """Objects over lines, one layer a line; lists and what lies deeper on one line."""
    if not isinstance(value, dict) or not value or depth > 2:
        return json.dumps(value, allow_nan=False)
    inner = ",\n".join(
        f"{' ' * (depth + 1)}{json.dumps(key)}: {_readable_json(item, depth + 1)}" for key, item in value.items()
    )
    return "{\n" + inner + "\n" + " " * depth + "}"


def _packed_tensors(
    unet: nn.Module, coverage: Coverage | None, source_sha256: str | None, provenance: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], PackedConfig]:
    dense = empty_model(json.loads(unet.to_json_string()))  # type: ignore[operator]
    names = {name: tuple(m.weight.shape) for name, m in dense.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    rows, coverage = _time_rows(unet, coverage)
    removed = {name: names[name] for name in time_layers(dense)} if coverage is not None else {}
    layers: dict[str, PackedEntry] = {}
    tensors: dict[str, Tensor] = {}
    for name, shape in names.items():
        if name not in removed:
            bits, buffer = _buffer(name, unet.get_submodule(name), is_time=name in time_layers(dense))
            layers[name] = PackedEntry(bits=bits, shape=shape, sha256=buffer_hash(buffer))
            tensors[name + PACKED_SUFFIX] = encode_layer(buffer, shape[0])
    for name, tensor in unet.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner in removed or (owner in layers and leaf != "bias") or name == ROWS_TENSOR:
            continue
        if not tensor.is_floating_point():
            raise InputError(
                f"{name}: got a tensor of {tensor.dtype}, wanted only floating parameters beside the packed layers"
            )
        tensors[name] = _finite(name, tensor.detach().float().cpu().contiguous())
    if rows is not None:
        tensors[ROWS_TENSOR] = rows
    features = TimeFeaturesEntry(kind="layers_8bit")
    if coverage is not None and rows is not None:
        samplers = tuple(SamplerEntry(name=s.name, steps=s.steps) for s in coverage.samplers)
        features = TimeFeaturesEntry(kind="cached", steps=coverage.steps, samplers=samplers, channels=rows.shape[1])
    config = PackedConfig(
        layers=layers,
        removed=removed,
        time_features=features,
        others_sha256=others_hash(tensors),
        source_sha256=source_sha256,
        provenance=dict(provenance or {}),
    )
    return tensors, config


def _time_rows(unet: nn.Module, coverage: Coverage | None) -> tuple[Tensor | None, Coverage | None]:
    """The float16 rows to store, of a UNet with its time layers or of one that is cached already."""
    cached = getattr(unet, "time_proj", None)
    if isinstance(cached, TimeFeatureRows):
        missing = [] if coverage is None else [step for step in coverage.steps if step not in cached.coverage.steps]
        if coverage is None or missing:
            wanted = "time layers" if coverage is None else f"time step {missing[0]}"
            raise InputError(
                f"time features: got a UNet cached for {cached.coverage}, wanted its {wanted}: pack from before caching"
            )
        picked = [cached.coverage.steps.index(step) for step in coverage.steps]
        return cached.rows[picked].to("cpu", torch.float16), coverage
    if coverage is None:
        return None, None
    return time_feature_rows(unet, coverage.steps).cpu(), coverage


def _buffer(name: str, layer: nn.Module, is_time: bool) -> tuple[int, Tensor]:
    """b and the packed buffer of one kept layer."""
    if isinstance(layer, (PackedLinear, PackedConv2d)):
        return layer.bits, layer.packed.cpu()
    if isinstance(layer, (FakeQuantizedLinear, FakeQuantizedConv2d)):
        weight, bits = _finite(name, layer.weight.detach()), layer.bits
        scale = _finite(name, layer.scale.detach())
    elif is_time and isinstance(layer, (nn.Linear, nn.Conv2d)):
        weight, bits = _finite(name, layer.weight.detach()), TIME_LAYER_BITS
        scale = initial_scale(weight, bits, ScaleInit.EXACT)
    else:
        raise InputError(
            f"{name}: got a dense {type(layer).__name__}, wanted every layer quantized: give it bits in the recipe"
        )
    return bits, packed_buffer(quantize(weight, scale, bits), scale, bits)


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name}: got NaN or infinite values, wanted finite weights and scales")
    return tensor
