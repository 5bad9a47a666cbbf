"""`bitsfusion init` and `pack`: a pipeline's folder -> a packed one, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitsfusion.architectures.unet import unet_layers
from bitsfusion.artifact.components import components
from bitsfusion.artifact.parts import ModelParts, parts_of_folder, parts_of_model, timed_model
from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.artifact.writer import write_parts
from bitsfusion.diffusion.time_features import BASIS, Cover, choose_features
from bitsfusion.errors import InputError
from bitsfusion.io.files import read_json, sha256_file, sha256_folder
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import pipeline_folder
from bitsfusion.pipelines.model_folder import ModelFolder, left_out, open_unet
from bitsfusion.recipe.named import is_file, recipe_bits
from bitsfusion.runs.components import UNET_ALONE, OtherBits, by_weight_error, other_parts
from bitsfusion.runs.progress import ProgressSink
from bitsfusion.training.checkpoint import load_student


def init_pipeline(
    model: str,
    out: Path,
    *,
    recipe: str | None = None,
    bits: float | None = None,
    method: ScaleInit = ScaleInit.EXACT,
    samplers: Cover = BASIS,
    others: OtherBits = UNET_ALONE,
    progress: ProgressSink | None = None,
) -> dict[str, PackedConfig]:
    """Quantizer init, time features and packing, without training (section 4.1); no model is loaded as a whole.

    Args:
        model: "embedded", a diffusers pipeline folder with a UNet2DConditionModel, or a hub id.
        out: the packed pipeline folder to write.
        recipe: a recipe file, a published recipe, or uniform:N; see `recipe_bits`.
        bits: instead of a recipe, the average bits of one by `weight_error_table`, time features counted.
        method: how scales are found.
        samplers: see `Cover`.
        others: what is packed beside the UNet, and at how many bits; all else is copied as it is.
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
    choice = choose_features(
        timed_model(unet) if samplers == BASIS else unet.skeleton, samplers, _scheduler_config(source)
    )
    if bits is not None:
        values = None if choice.features is None else choice.values
        chosen, made_by = by_weight_error(unet, unet_layers(unet.skeleton), bits, progress, values)
    else:
        assert recipe is not None
        chosen = recipe_bits(recipe, unet_layers(unet.skeleton))
        made_by = {"recipe": recipe, **({"recipe_sha256": sha256_file(Path(recipe))} if is_file(recipe) else {})}
    notes = [note for note in (choice.note, left_out(unet)) if note is not None]
    provenance = {**made_by, "scale_init": method.value, **({"notes": notes} if notes else {})}
    parts = {"unet": parts_of_folder(unet, chosen, method, choice.features)}
    notes_of = {"unet": provenance}
    for name, (part, made) in other_parts(source, others, method, progress).items():
        parts[name], notes_of[name] = part, made
    return _write(parts, source, out, notes_of, progress)


def init_model(model: str, out: Path, **options: Any) -> PackedConfig:
    """`init_pipeline`, with the same options; returns what the packed UNet says about itself."""
    return init_pipeline(model, out, **options)["unet"]


def pack_checkpoint(
    checkpoint: Path,
    model: str,
    out: Path,
    samplers: Cover = BASIS,
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
    choice = choose_features(student, samplers, _scheduler_config(source))
    provenance = {"checkpoint": checkpoint.name, **({"notes": [choice.note]} if choice.note else {})}
    parts, notes_of = {"unet": parts_of_model(student, choice.features)}, {"unet": provenance}
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


def _scheduler_config(source: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(source / "scheduler" / "scheduler_config.json")
    return config


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
