"""A UNet on disk, read tensor by tensor: the dense model is never in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitsfusion.errors import InputError
from bitsfusion.files import read_json
from bitsfusion.models.weight_files import weight_files
from bitsfusion.schema import named

UNET_CLASS = "UNet2DConditionModel"


@dataclass(frozen=True)
class _Place:
    file: Path
    name: str


@dataclass(frozen=True)
class UNetFolder:
    """A diffusers UNet's folder, checked: every tensor that the model needs is there in the right shape.

    Fields:
        path: the folder.
        skeleton: the dense model on meta; names and shapes, no weights.
        ignored: tensors in the files that the model does not have; diffusers passes them over, too.
    """

    path: Path
    skeleton: UNet2DConditionModel
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


def open_unet(folder: Path) -> UNetFolder:
    """Opens a folder with config.json and safetensors files: one or in shards, plain or of a variant such as fp16.

    Raises:
        InputError: no UNet2DConditionModel, one that is quantized already, files that are missing or cut, or a tensor
            (named) that is missing, has another shape than the model's, or does not hold floating numbers.
    """
    skeleton = _skeleton(folder)
    chosen = weight_files(folder)
    if chosen is None:
        raise InputError(f"{folder}: got no weights, wanted diffusion_pytorch_model.safetensors or shards of it")
    stored: dict[str, tuple[_Place, tuple[int, ...], str]] = {}
    for file in chosen.files:
        for name, (shape, dtype) in _header(file).items():
            stored[name] = (_Place(file, name), shape, dtype)
    # Old attention blocks have other names; diffusers itself says which stand for which.
    names: Any = skeleton._fix_state_dict_keys_on_load({name: name for name in stored})
    places = {}
    for name, tensor in skeleton.state_dict().items():
        if name not in names:
            raise InputError(f"{name}: got no such tensor in {folder}, wanted every parameter of the {UNET_CLASS}")
        place, shape, dtype = stored[names[name]]
        if shape != tuple(tensor.shape):
            raise InputError(
                f"{name}: got shape {list(shape)} in {place.file}, wanted {list(tensor.shape)} as config.json has it"
            )
        if not dtype.startswith(("F", "BF")):
            raise InputError(f"{name}: got dtype {dtype} in {place.file}, wanted floating numbers")
        places[name] = place
    return UNetFolder(folder, skeleton, tuple(name for name in names if name not in places), places)


def _skeleton(folder: Path) -> UNet2DConditionModel:
    config: Any = read_json(folder / "config.json")
    got = config.get("_class_name") if isinstance(config, dict) else None
    if got != UNET_CLASS:
        raise InputError(f"{folder / 'config.json'}: got _class_name {got!r}, wanted {UNET_CLASS!r}")
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise InputError(f"{folder}: got a UNet quantized by {method!r}, wanted a full-precision one")
    try:
        with torch.device("meta"):
            model: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    except Exception as error:  # diffusers raises whatever its constructors meet
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder / 'config.json'}: {UNET_CLASS} refuses it: {reason}") from None
    return model.eval()


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and dtype (as safetensors writes it), from the header alone."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: got {error}, wanted a whole safetensors file") from None


def left_out(folder: UNetFolder) -> str | None:
    """One line about the tensors that were passed over, if any were."""
    if not folder.ignored:
        return None
    return f"{len(folder.ignored)} tensors that the UNet does not have were left out: {named(list(folder.ignored))}"
