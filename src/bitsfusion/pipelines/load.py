"""Loading the full-precision pipeline that everything starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from bitsfusion.embedded import PIPELINE_FOLDER
from bitsfusion.errors import InputError
from bitsfusion.io.files import read_json
from bitsfusion.pipelines.weight_files import weight_files

EMBEDDED = "embedded"
"""The name of the model that ships inside the package."""


def pipeline_folder(model: str) -> Path:
    """The local diffusers folder of `model`: "embedded", a folder, or a hub id (fetched if need be).

    Raises:
        InputError: there is no such folder, it is not a diffusers pipeline, or the hub has no such model.
    """
    if model == EMBEDDED:
        return PIPELINE_FOLDER
    folder = Path(model)
    if folder.exists():
        if not (folder / "model_index.json").is_file():
            raise InputError(f"{model}: got a folder without model_index.json, wanted a diffusers pipeline folder")
        return folder
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise InputError(f"{model}: no such folder, wanted a diffusers pipeline folder, a hub id or {EMBEDDED!r}")
    try:
        return Path(DiffusionPipeline.download(model))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{model}: no such folder, and the hub did not give it: {reason}") from None


def load_pipeline(model: str, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The pipeline of `model` (see `pipeline_folder`) with every component in `dtype`, ready to use on the CPU.

    Raises:
        InputError: as `pipeline_folder`, or it is a pipeline without a UNet, or its files are damaged.
    """
    folder = pipeline_folder(model)
    index = read_json(folder / "model_index.json")
    if "unet" not in index:
        name = index.get("_class_name", "unknown class")
        raise InputError(f"{model}: got a {name} without a UNet, wanted a Stable Diffusion pipeline")
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, dtype=dtype, variant=_variant(folder / "unet"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{model}: could not be loaded as a diffusers pipeline: {reason}") from None
    result: StableDiffusionPipeline = pipeline
    return result


def _variant(folder: Path) -> str | None:
    """fp16 where a component has its weights under such names only; diffusers itself looks for plain ones."""
    try:
        files = weight_files(folder)
    except (InputError, OSError):
        return None  # other formats: diffusers' business
    return None if files is None else files.variant
