"""The library at a glance: a pipeline in memory made small, and the steps of the method as functions on files."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TypeVar

from diffusers import DiffusionPipeline

from bitsfusion.architectures.base import Denoiser
from bitsfusion.architectures.registry import DENOISER_KINDS, architecture_named
from bitsfusion.artifact.inspect import inspect_folder as inspect
from bitsfusion.artifact.verify import verify_folder as verify
from bitsfusion.errors import InputError
from bitsfusion.evaluation.drawing import generate_to_folder as generate
from bitsfusion.evaluation.evaluate import evaluate
from bitsfusion.exporting.export import export
from bitsfusion.recipe.assign import assign
from bitsfusion.recipe.schema import Recipe, write_recipe
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.packing import init_pipeline
from bitsfusion.runs.packing import pack_checkpoint as pack
from bitsfusion.runs.plan import plan
from bitsfusion.runs.stage import train_stage as train
from bitsfusion.sensitivity.measure import analyze

__all__ = [
    "analyze",
    "assign",
    "evaluate",
    "export",
    "generate",
    "init_pipeline",
    "inspect",
    "pack",
    "plan",
    "quantize",
    "train",
    "verify",
]

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


def quantize(
    pipeline: Pipeline,
    bits: float = 1.99,
    recipe: str | Path | Recipe | None = None,
    calibration: CalibrationJob | None = None,
) -> Pipeline:
    """`pipeline` with its denoiser packed in memory: real bits, no training (section 4.1).

    What comes back draws, takes adapters and is saved by `save_pretrained` like a packed folder that was loaded; the
    other components are shared with `pipeline`, which keeps its own denoiser. The work goes by way of the system's
    temporary folder, which needs room for the pipeline's files twice.

    Args:
        pipeline: a diffusers pipeline in full precision, without adapters.
        bits: average bits a weight (Appendix H), spread by the errors of the weights with the least in all; not
            looked at where there is a recipe.
        recipe: a recipe, its file, `sd15`, `sdxl`, or `uniform:N`.
        calibration: codes, scales and biases by what the denoiser computes, much nearer to the original and minutes
            slower; None rounds the weights alone.

    Returns:
        A pipeline of the same class; the denoiser computes in the dtype and on the device of the one it replaces.

    Raises:
        InputError: no denoiser that is known, one that is packed already or has adapters, bits that cannot be met, or a
            recipe that does not fit (names the layer).
        BitsFusionError: the temporary folder is full.

    Example:
        >>> from bitsfusion.pipelines.load import load_pipeline
        >>> small = quantize(load_pipeline("embedded"), recipe="uniform:2")
        >>> picture = small("a red circle", num_inference_steps=50).images[0]
        >>> picture.size
        (64, 64)
    """
    name = _denoiser_name(pipeline)
    dense = pipeline.components[name]
    with tempfile.TemporaryDirectory(prefix="bitsfusion-") as folder:
        source, packed, chosen = Path(folder, "source"), Path(folder, "packed"), recipe
        pipeline.save_pretrained(source)
        if isinstance(recipe, Recipe):
            chosen = Path(folder, "recipe.json")
            write_recipe(chosen, recipe)
        init_pipeline(
            str(source),
            packed,
            recipe=None if chosen is None else str(chosen),
            bits=bits if chosen is None else None,
            calibration=calibration,
        )
        small = type(dense).from_pretrained(packed / name, torch_dtype=dense.dtype)
    made = copy.copy(pipeline)
    made.register_modules(**{name: small.to(dense.device)})
    return made


def _denoiser_name(pipeline: DiffusionPipeline) -> str:
    """The component that is called once a step.

    Raises:
        InputError: there is none, or it is no plain full-precision one.
    """
    for name, component in pipeline.components.items():
        if not isinstance(architecture_named(type(component).__name__), Denoiser):
            continue
        if component.config.get("quantization_config") is not None:
            raise InputError(f"{name}: got a model that is quantized already, wanted one in full precision")
        if getattr(component, "peft_config", None):
            raise InputError(f"{name}: got a model with adapters, wanted it without: unload or fuse them first")
        return name
    raise InputError(f"pipeline: got a {type(pipeline).__name__}, wanted one with {DENOISER_KINDS}")
