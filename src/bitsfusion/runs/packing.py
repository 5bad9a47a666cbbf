"""`bitsfusion init` and `pack`: a pipeline's folder -> a packed one, layer by layer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.components import components
from bitsfusion.artifact.parts import ModelParts, parts_of_folder, parts_of_model
from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.artifact.writer import PAPER_SAMPLERS, write_parts
from bitsfusion.diffusion.time_features import Coverage, SamplerSteps, cover
from bitsfusion.diffusion.time_features.cache import uncacheable
from bitsfusion.errors import InputError
from bitsfusion.io.files import read_json, sha256_file, sha256_folder
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import load_pipeline, pipeline_folder
from bitsfusion.pipelines.model_folder import ModelFolder, left_out, open_unet
from bitsfusion.recipe.named import is_file, recipe_bits
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.components import UNET_ALONE, OtherBits, by_weight_error, other_parts
from bitsfusion.runs.progress import ProgressSink
from bitsfusion.training.checkpoint import load_student

AUTO: Literal["auto"] = "auto"
"""Cache what the paper caches (PNDM, 50 steps) where the UNet allows it; otherwise keep the time layers and say so."""

Cover: TypeAlias = Sequence[SamplerSteps] | Literal["auto"] | None
"""Samplers whose time features are cached; None keeps the time layers at 8 bits; or `AUTO`."""


def init_pipeline(
    model: str,
    out: Path,
    *,
    recipe: str | None = None,
    bits: float | None = None,
    method: ScaleInit = ScaleInit.EXACT,
    samplers: Cover = AUTO,
    others: OtherBits = UNET_ALONE,
    calibration: CalibrationJob | None = None,
    progress: ProgressSink | None = None,
) -> dict[str, PackedConfig]:
    """Quantizer init, time features and packing, without training (section 4.1).

    No model is loaded as a whole, unless it is calibrated. A calibration that was killed goes on with the same call.

    Args:
        model: "embedded", a diffusers pipeline folder with a UNet2DConditionModel, or a hub id.
        out: the packed pipeline folder to write.
        recipe: a recipe file, a published recipe, or uniform:N; see `recipe_bits`.
        bits: instead of a recipe, the average bits of one by `weight_error_table`, time features counted.
        method: how scales are found.
        samplers: see `Cover`.
        others: what is packed beside the UNet, and at how many bits; all else is copied as it is.
        calibration: codes, scales and biases of the UNet by what it computes, in the place of `method`; see
            `bitsfusion.calibration`.
        progress: is told of every layer.

    Returns:
        What each packed component says about itself. `provenance["notes"]` lists, in plain words, what was not done as
        asked.

    Raises:
        InputError: both or neither of recipe and bits, a recipe or a file that does not fit (names the layer).
        BitsFusionError: the disk.
    """
    if (recipe is None) == (bits is None):
        got = "neither" if recipe is None else "both"
        raise InputError(f"recipe, bits: got {got}, wanted one of them: a recipe, or an average number of bits")
    progress = progress or ProgressSink()
    source, unet = _open(model)
    coverage, notes = _coverage(unet.skeleton, source, samplers)
    if bits is not None:
        steps = 0 if coverage is None else len(coverage.steps)
        chosen, made_by = by_weight_error(unet, model_layers(unet.skeleton), bits, progress, steps)
    else:
        assert recipe is not None
        chosen = recipe_bits(recipe, model_layers(unet.skeleton))
        made_by = {"recipe": recipe, **({"recipe_sha256": sha256_file(Path(recipe))} if is_file(recipe) else {})}
    notes += [note for note in (left_out(unet),) if note is not None]
    found: dict[str, Any] = {"scale_init": method.value}
    rounded, work = None, None
    if calibration is not None:
        work = calibration.folder(out, model, sha256_folder(source), chosen)
        made = calibration.run(load_pipeline(model), model, chosen, progress, work)
        rounded, found = made.layers, calibration.provenance(model)
        notes += made.notes
    provenance = {**made_by, **found, **({"notes": notes} if notes else {})}
    parts = {"unet": parts_of_folder(unet, chosen, method, coverage, rounded)}
    notes_of = {"unet": provenance}
    for name, (part, made_of) in other_parts(source, others, method, progress).items():
        parts[name], notes_of[name] = part, made_of
    written = _write(parts, source, out, notes_of, progress)
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    return written


def init_model(model: str, out: Path, **options: Any) -> PackedConfig:
    """`init_pipeline`, with the same options; returns what the packed UNet says about itself."""
    return init_pipeline(model, out, **options)["unet"]


def pack_checkpoint(
    checkpoint: Path,
    model: str,
    out: Path,
    samplers: Cover = AUTO,
    progress: ProgressSink | None = None,
    others: OtherBits = UNET_ALONE,
) -> PackedConfig:
    """A finished stage or a checkpoint of one -> a packed pipeline folder.

    Args:
        checkpoint: a stage's folder, or a checkpoint-{step} in it.
        model: the pipeline it was trained from, which gives all but the UNet.
        out: the folder to write.
        samplers: see `Cover`.
        progress: is told of every layer.
        others: what is packed beside the UNet, without training, with compact scales; all else is copied as it is.

    Returns:
        What the packed UNet says about itself.
    """
    source, progress = _source(model), progress or ProgressSink()
    student = load_student(checkpoint)
    coverage, notes = _coverage(student, source, samplers)
    provenance = {"checkpoint": checkpoint.name, **({"notes": notes} if notes else {})}
    parts, notes_of = {"unet": parts_of_model(student, coverage)}, {"unet": provenance}
    for name, (part, made) in other_parts(source, others, ScaleInit.COMPACT, progress).items():
        parts[name], notes_of[name] = part, made
    return _write(parts, source, out, notes_of, progress)["unet"]


def _source(model: str) -> Path:
    folder = pipeline_folder(model)
    if "unet" not in components(folder):
        name = read_json(folder / "model_index.json").get("_class_name", "unknown class")
        raise InputError(f"{model}: got a {name} without a UNet, wanted a pipeline with a UNet2DConditionModel")
    return folder


def _open(model: str) -> tuple[Path, ModelFolder]:
    source = _source(model)
    return source, open_unet(source / "unet")


def _coverage(unet: nn.Module, source: Path, samplers: Cover) -> tuple[Coverage | None, list[str]]:
    """The steps to cache, if any, and what is to be said about it."""
    if samplers is None:
        return None, []
    reason = uncacheable(unet) if samplers == AUTO else None
    if reason is not None:
        return None, [f"time layers stay, at 8 bits and for any sampler: the UNet has {reason}, no features to cache"]
    config = read_json(source / "scheduler" / "scheduler_config.json")
    return cover(PAPER_SAMPLERS if samplers == AUTO else samplers, config), []


def _write(
    parts: Mapping[str, ModelParts],
    source: Path,
    out: Path,
    provenance: Mapping[str, Mapping[str, Any]],
    progress: ProgressSink,
) -> dict[str, PackedConfig]:
    started = time.monotonic()
    configs = write_parts(
        parts,
        source,
        out,
        source_sha256=sha256_folder(source),
        provenance=provenance,
        progress=lambda done, total: progress.update("pack", done, total),
    )
    progress.finish("pack", time.monotonic() - started)
    return configs
