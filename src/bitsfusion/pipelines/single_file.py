"""A single-file checkpoint in the layout of the original LDM or SDXL code -> a diffusers pipeline folder.

The conversion is diffusers' own (`from_single_file`). Its result is kept in the user's cache, so that the same file is
converted once and a run that is continued finds the same folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bitsfusion.errors import InputError, reason
from bitsfusion.io.atomic import atomic_folder
from bitsfusion.io.hashes import sha256_file, sha256_json
from bitsfusion.io.work_folder import cache_folder
from bitsfusion.pipelines.completeness import check_file
from bitsfusion.pipelines.component import load_component
from bitsfusion.pipelines.folder import INDEX, Form, PipelineFolder, read_folder

_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_PARTS = {"vae": ("first_stage_model.",), "text_encoder": ("cond_stage_model.", "conditioner.embedders.")}
_LIKELY_CLASSES = {
    ("conditioner.embedders.1.", 4): "StableDiffusionXLPipeline",
    ("conditioner.embedders.1.", 9): "StableDiffusionXLInpaintPipeline",
    ("conditioner.embedders.0.", 4): "StableDiffusionXLImg2ImgPipeline",  # the refiner
    ("cond_stage_model.", 4): "StableDiffusionPipeline",
    ("cond_stage_model.", 7): "StableDiffusionUpscalePipeline",
    ("cond_stage_model.", 8): "StableDiffusionInstructPix2PixPipeline",
    ("cond_stage_model.", 9): "StableDiffusionInpaintPipeline",
}
"""How the names of a file's text encoder begin, and its UNet's input channels -> the class of its pipeline."""

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class SingleFile:
    """What the header of a checkpoint says.

    Fields:
        path: the file.
        class_name: of the pipeline that it most likely is, by its names and shapes.
        dtype: of its UNet's weights.
        parts: "vae" and "text_encoder", as far as they are in it.
        velocity: it is marked as trained to predict velocities (a tensor `v_pred`).
        zero_snr: it is marked as trained to zero terminal SNR (a tensor `ztsnr`).
    """

    path: Path
    class_name: str
    dtype: torch.dtype
    parts: frozenset[str]
    velocity: bool = False
    zero_snr: bool = False


def read_header(path: Path) -> SingleFile:
    """What is in a checkpoint, from its header alone.

    Raises:
        InputError: no whole safetensors file, a weight file of a diffusers folder, an adapter, or another layout.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            first = file.get_slice(_UNET) if _UNET in names else None
            shape, dtype = ([], "") if first is None else (first.get_shape(), first.get_dtype())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: got {reason(error)}, wanted a whole .safetensors checkpoint") from None
    if any("lora_" in name or ".lokr_" in name or ".hada_" in name for name in names):
        raise InputError(f"{path}: got an adapter, wanted a whole checkpoint: fuse it into its pipeline and save that")
    if first is None:
        if (path.parent / "config.json").is_file():
            raise InputError(f"{path}: got a weight file of a diffusers folder, wanted the folder: {path.parent}")
        got = min(names, default="no tensor")
        raise InputError(
            f"{path}: got a checkpoint with {got}, wanted the original LDM or SDXL layout (with {_UNET}): load it with "
            "the from_single_file of its diffusers class, save_pretrained(FOLDER), and give FOLDER"
        )
    text = next((start for start, _ in _LIKELY_CLASSES if any(name.startswith(start) for name in names)), None)
    kind = _LIKELY_CLASSES.get((text or "cond_stage_model.", shape[1] if len(shape) == 4 else 0))
    if kind is None or dtype not in _DTYPES:
        raise InputError(
            f"{path}: got a UNet whose first layer is {dtype} {shape}, wanted F32, F16 or BF16 and 4 to 9 channels in"
        )
    parts = frozenset(part for part, starts in _PARTS.items() if any(name.startswith(starts) for name in names))
    return SingleFile(path, kind, _DTYPES[dtype], parts, "v_pred" in names, "ztsnr" in names)


def converted(path: Path, config: PipelineFolder | None = None) -> PipelineFolder:
    """The diffusers folder of a single-file checkpoint, converted unless the cache has it.

    The whole model is in memory while it is converted, in the dtype of the file.

    Args:
        path: a .safetensors file.
        config: a pipeline folder of the same kind, for configs, scheduler and tokenizers, and for components that are
            not in the file. None takes the ones that diffusers fetches from the hub.

    Raises:
        InputError: as `read_header`, the hub cannot be reached and there is no `config`, or it does not fit the file.
    """
    header = read_header(path)
    identity: dict[str, Any] = {"file": sha256_file(path), "config": config and config.source_sha256, "version": 2}
    target = cache_folder("converted") / sha256_json(identity)
    if not (target / INDEX).is_file():
        with atomic_folder(target) as temporary:
            _convert(header, config, temporary)
    return read_folder(target)


def _convert(header: SingleFile, config: PipelineFolder | None, target: Path) -> None:
    import diffusers

    if config is not None and config.form is not Form.PIPELINE:
        raise InputError(f"config: got a {config.form.value} folder ({config.path}), wanted a whole pipeline folder")
    kind = header.class_name if config is None else config.class_name
    made: Any = getattr(diffusers, kind or "", None)
    if not hasattr(made, "from_single_file"):
        raise InputError(
            f"config: got a {kind} ({config and config.path}), wanted a pipeline such as {header.class_name}"
        )
    given = {} if config is None else _given(header, config)
    try:
        pipeline = made.from_single_file(
            str(header.path), config=None if config is None else str(config.path), dtype=header.dtype, **given
        )
        _follow_marks(header, pipeline)
        pipeline.save_pretrained(target, safe_serialization=True)
    except Exception as error:  # converters raise whatever they meet
        if config is None:
            raise InputError(
                f"{header.path}: the configs of a {kind} could not be had from the hub: give a pipeline folder of the "
                f"same kind with --config FOLDER ({reason(error)})"
            ) from None
        raise InputError(
            f"{header.path}: could not be converted with the configs of {config.path}: {reason(error)}"
        ) from None


def _follow_marks(header: SingleFile, pipeline: Any) -> None:
    """Gives the scheduler what the checkpoint's own marks say it was trained for: configs of its base model do not."""
    marks: dict[str, Any] = {"prediction_type": "v_prediction"} if header.velocity else {}
    if header.zero_snr:
        marks |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if marks:
        import diffusers

        own: Any = type(pipeline.scheduler)
        knows = marks.keys() <= own._get_init_keys(own)  # PNDM, for one, has no rescaled betas
        kind: Any = own if knows else diffusers.EulerDiscreteScheduler
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **marks)


def _given(header: SingleFile, config: PipelineFolder) -> Mapping[str, Any]:
    """The components that the file lacks and the config's folder has."""
    given = {}
    for component in config.components:
        part = component.name.removesuffix("_2").removesuffix("_3")
        if part not in _PARTS or part in header.parts:
            continue
        if component.weights is None:
            raise InputError(
                f"{header.path}: got a checkpoint without a {component.name}, wanted one with it, or a --config folder "
                "that has its weights"
            )
        given[component.name] = load_component(component, header.dtype)
    return given
