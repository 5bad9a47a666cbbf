"""Loads pipelines into memory."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from bitsfusion.errors import InputError, reason
from bitsfusion.pipelines.component import load_component
from bitsfusion.pipelines.folder import Component, Form, PipelineFolder
from bitsfusion.pipelines.resolve import EMBEDDED, resolve

__all__ = ["EMBEDDED", "load_pipeline", "pipeline_folder"]


def pipeline_folder(model: str) -> Path:
    """The local diffusers pipeline folder of `model`; see `resolve`.

    Raises:
        InputError: as `resolve`, or it is one component alone.
    """
    return whole_pipeline(model).path


def whole_pipeline(model: str | PipelineFolder) -> PipelineFolder:
    """`resolve`, for those who need all of a pipeline.

    Raises:
        InputError: as `resolve`, or it is one component alone.
    """
    found = model if isinstance(model, PipelineFolder) else resolve(model)
    if found.form is not Form.PIPELINE:
        kinds = ", ".join(component.class_name for component in found.components)
        raise InputError(f"{found.path}: got a {found.form.value} ({kinds}), wanted a whole diffusers pipeline folder")
    return found


def load_pipeline(
    model: str | PipelineFolder, dtype: torch.dtype = torch.float32, denoiser: bool = True
) -> StableDiffusionPipeline:
    """The pipeline of `model` (see `resolve`) with every component in `dtype`, ready to use on the CPU.

    Each component is read from the files that it has: plain files beside those of variant fp16 are no problem.

    Args:
        denoiser: whether its denoiser is loaded, too; None stands in its place otherwise.

    Raises:
        InputError: as `resolve`, or a pipeline without a model that is packed, or its files are damaged.
    """
    folder = whole_pipeline(model)
    packed = folder.denoiser.name
    left_out = None if denoiser else packed
    try:
        loaded = {
            component.name: load_component(component, dtype)
            for component in folder.components
            if component.name != left_out
            and (component.folder.parent != folder.path or _variant(component) is not None)
        }
        absent = {name: None for name, entry in folder.index.items() if entry == [None, None] or name == left_out}
        pipeline: Any = DiffusionPipeline.from_pretrained(folder.path, dtype=dtype, **absent, **loaded)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder.path}: could not be loaded as a diffusers pipeline: {reason(error)}") from None
    result: StableDiffusionPipeline = pipeline
    return result


def check_draws_from_text(pipeline: DiffusionPipeline) -> None:
    """Refuses a pipeline that needs an input image, or takes no prompt.

    Raises:
        InputError: names its class and what it wants.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    name = type(pipeline).__name__
    if "prompt" not in parameters:
        raise InputError(f"prompt: got a {name}, which takes none, wanted a pipeline that draws from text")
    picture = _picture_of(type(pipeline))
    if picture is not None:
        also = " and a mask" if "mask_image" in parameters else ""
        raise InputError(
            f"prompt: got a {name}, which draws from a picture{also} beside the prompt, wanted one that draws "
            f"from text alone: call it in Python, {name}.from_pretrained(FOLDER)(prompt, {picture}=...)"
        )


def _picture_of(kind: type) -> str | None:
    """The argument for the picture that a class of pipelines cannot do without; None where it needs none."""
    parameters = inspect.signature(kind.__call__).parameters
    for name in ("image", "control_image"):
        if name in parameters and "None" not in str(parameters[name].annotation):
            return name
    encode = getattr(kind, "encode_prompt", None)  # a model that edits reads prompt and picture together
    edits = encode is not None and "image" in inspect.signature(encode).parameters
    return "image" if "image" in parameters and (edits or "mask_image" in parameters) else None


def _variant(component: Component) -> str | None:
    """fp16 where a component has its weights under such names only; diffusers itself looks for plain ones."""
    try:
        return component.variant
    except (InputError, OSError):
        return None  # other formats: diffusers' business
