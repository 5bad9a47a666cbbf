"""A model on disk, read tensor by tensor: the dense model is never in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bitsfusion.architectures.base import Architecture
from bitsfusion.errors import InputError, reason
from bitsfusion.io.schema import named
from bitsfusion.io.texts import read_json
from bitsfusion.pipelines.completeness import read_shapes
from bitsfusion.pipelines.weight_files import weight_files


@dataclass(frozen=True)
class _Place:
    file: Path
    name: str


@dataclass(frozen=True)
class ModelFolder:
    """A dense model's folder, checked: every tensor that the model needs is there in the right shape.

    Fields:
        path: the folder.
        architecture: what it holds.
        config: its config.json.
        skeleton: the dense model on meta; names and shapes, no weights.
        ignored: tensors in the files that the model does not have; its library passes them over, too.
    """

    path: Path
    architecture: Architecture
    config: Mapping[str, Any]
    skeleton: nn.Module
    ignored: tuple[str, ...]
    _places: Mapping[str, _Place]

    def tensor(self, name: str) -> Tensor:
        """A parameter by its name in the model, float32, read from the file now and not kept. Any thread may call it.

        Raises:
            InputError: the file has changed or cannot be read.
        """
        place = self._places[name]
        try:
            with safe_open(place.file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(place.name)
                return tensor.to(torch.float32, copy=True)  # a view would keep the whole file mapped
        except (OSError, SafetensorError) as error:
            raise InputError(f"{name}: could not be read from {place.file} ({error})") from None


def open_model(folder: Path, architecture: Architecture) -> ModelFolder:
    """Opens a folder with config.json and safetensors files: one or in shards, plain or of a variant such as fp16.

    Raises:
        InputError: another class of model, one that is quantized already, files that are missing or cut, or a tensor
            (named) that is missing, has another shape than the model's, or does not hold floating numbers.
    """
    config = _config(folder, architecture)
    try:
        skeleton = architecture.build(config)
    except Exception as error:  # constructors raise whatever they meet
        raise InputError(f"{folder / 'config.json'}: {architecture.name} refuses it: {reason(error)}") from None
    chosen = weight_files(folder)
    if chosen is None:
        raise InputError(f"{folder}: got no weights, wanted {architecture.weights} or shards of it")
    stored: dict[str, tuple[_Place, tuple[int, ...], str]] = {}
    for file in chosen.files:
        for name, (shape, dtype) in read_shapes(file).items():
            stored[name] = (_Place(file, name), shape, dtype)
    names = architecture.stored_names(skeleton, stored)
    places = {}
    passed_over = architecture.passed_over(skeleton)
    for name, tensor in skeleton.state_dict().items():
        if name in passed_over:
            continue
        if name not in names:
            wanted = f"every parameter of the {architecture.name}"
            raise InputError(f"{name}: got no such tensor in {folder}, wanted {wanted}")
        place, shape, dtype = stored[names[name]]
        if shape != tuple(tensor.shape):
            raise InputError(
                f"{name}: got shape {list(shape)} in {place.file}, wanted {list(tensor.shape)} as config.json has it"
            )
        if not dtype.startswith(("F", "BF")):
            raise InputError(f"{name}: got dtype {dtype} in {place.file}, wanted floating numbers")
        places[name] = place
    ignored = tuple(name for name in names if name not in places and name not in passed_over)
    return ModelFolder(folder, architecture, config, skeleton, ignored, places)


def _config(folder: Path, architecture: Architecture) -> dict[str, Any]:
    config: Any = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'}: got a {type(config).__name__}, wanted a model's config")
    got = config.get("_class_name", architecture.name if architecture.library == "transformers" else None)
    if got != architecture.name:
        raise InputError(f"{folder / 'config.json'}: got _class_name {got!r}, wanted {architecture.name!r}")
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise InputError(f"{folder}: got a {architecture.noun} quantized by {method!r}, wanted a full-precision one")
    return config


def left_out(folder: ModelFolder) -> str | None:
    """One line about the tensors that were ignored, if any were."""
    if not folder.ignored:
        return None
    return (
        f"{len(folder.ignored)} tensors that the {folder.architecture.noun} does not have were left out: "
        f"{named(list(folder.ignored))}"
    )
