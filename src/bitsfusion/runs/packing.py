"""`bitsfusion init` and `pack`: a pipeline's folder -> a packed one, layer by layer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import denoiser_of, model_layers
from bitsfusion.artifact.dense_files import check_dense
from bitsfusion.artifact.parts import ModelParts, parts_of_folder, parts_of_model, timed_model, with_float16_scales
from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.artifact.writer import write_parts
from bitsfusion.calibration.calibrate import Calibration
from bitsfusion.diffusion.time_features import BASIS, Cover, choose_features, time_layers
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_file
from bitsfusion.io.texts import read_json
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.completeness import check_complete
from bitsfusion.pipelines.folder import PipelineFolder
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.pipelines.model_folder import ModelFolder, left_out, open_model
from bitsfusion.pipelines.resolve import resolve
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.recipe.named import is_file, recipe_bits
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.components import UNET_ALONE, OtherBits, by_weight_error, other_parts
from bitsfusion.training.checkpoint import load_student

ScaleDtype: TypeAlias = Literal["float32", "float16"]


def init_pipeline(
    model: str,
    out: Path,
    *,
    recipe: str | None = None,
    bits: float | None = None,
    method: ScaleInit = ScaleInit.EXACT,
    samplers: Cover = BASIS,
    others: OtherBits = UNET_ALONE,
    config: str | None = None,
    without: Sequence[str] = (),
    calibration: CalibrationJob | None = None,
    scale_dtype: ScaleDtype = "float32",
    progress: ProgressSink = SILENT,
) -> dict[str, PackedConfig]:
    """Quantizer init, time features and packing, without training (section 4.1).

    No model is loaded as a whole, unless it is calibrated. A calibration that was killed continues with the same call.

    Args:
        model: as `pipelines.resolve.resolve` takes it. Of a component alone, or a trainer's checkpoint of one, a packed
            model folder is made; with `config`, the whole pipeline.
        out: the packed folder to write.
        recipe: a recipe file, `sd15`, `sdxl`, or uniform:N; see `recipe_bits`.
        bits: instead of a recipe, the average bits of one by `weight_error_table`, time features counted.
        method: how scales are found.
        samplers: see `Cover`.
        others: what is packed beside the UNet, and at how many bits; all else is copied as it is.
        config: of a single file or a component, the pipeline that gives the rest; see `resolve`.
        without: components to leave out, such as safety_checker.
        calibration: codes, scales and biases of the UNet, and of what else is packed, by what they compute, in the
            place of `method`; see `bitsfusion.calibration`.
        scale_dtype: float16 rounds every scale to what float16 holds, so that an export to GGUF is exact.
        progress: is told of every layer.

    Returns:
        What each packed component says about itself, the denoiser first. `provenance["notes"]` lists, in plain words,
        what was not done as asked.

    Raises:
        InputError: both or neither of recipe and bits, a recipe or a file that does not fit (names the layer).
        BitsFusionError: the disk.
    """
    if (recipe is None) == (bits is None):
        got = "neither" if recipe is None else "both"
        raise InputError(f"recipe, bits: got {got}, wanted one of them: a recipe, or an average number of bits")
    source, unet = _open(model, config, tuple(without))
    name = source.denoiser.name
    keeps = calibration is not None and unet.architecture.timing is not None and samplers == BASIS
    choice = choose_features(
        timed_model(unet) if samplers == BASIS else unet.skeleton,
        None if keeps else samplers,
        _scheduler_config(source, samplers),
    )
    layers = model_layers(unet.skeleton)
    if choice.features is not None:
        layers |= {name: replace(layers[name], role=LayerRole.TIME) for name in time_layers(unet.skeleton)}
    if bits is not None:
        values = None if choice.features is None else choice.values
        chosen, made_by = by_weight_error(unet, layers, bits, progress, values)
    else:
        assert recipe is not None
        chosen = recipe_bits(recipe, layers)
        made_by = {"recipe": recipe, **({"recipe_sha256": sha256_file(Path(recipe))} if is_file(recipe) else {})}
    kept = "modulation layers keep their bits: they are calibrated with the rest" if keeps else None
    notes = [note for note in (unet.architecture.note, choice.note, kept, left_out(unet)) if note is not None]
    found: dict[str, Any] = {"scale_init": method.value}
    rounded, work = None, None
    if calibration is not None:
        work = calibration.folder(out, model, source.source_sha256, chosen)
        made = calibration.run(load_pipeline(source), model, chosen, progress, work)
        rounded, found = made.layers, calibration.provenance(model)
        notes += made.notes
    provenance = {**made_by, **found, **({"notes": notes} if notes else {})}
    parts = {name: parts_of_folder(unet, chosen, method, choice.features, rounded)}
    notes_of = {name: provenance}

    def calibrated(bits: Mapping[str, Mapping[str, int]]) -> Mapping[str, Calibration]:
        assert calibration is not None
        return calibration.run_others(load_pipeline(source), model, bits, progress, work) if bits else {}

    calibrator = None if calibration is None else calibrated
    for other, (part, made_of) in other_parts(source, others, method, progress, calibrator).items():
        parts[other], notes_of[other] = part, made_of
    written = _write(parts, source, out, notes_of, progress, scale_dtype)
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    return written


def pack_checkpoint(
    checkpoint: Path,
    model: str,
    out: Path,
    samplers: Cover = BASIS,
    progress: ProgressSink = SILENT,
    others: OtherBits = UNET_ALONE,
    scale_dtype: ScaleDtype = "float32",
) -> dict[str, PackedConfig]:
    """A finished stage or a checkpoint of one -> a packed pipeline folder.

    Args:
        checkpoint: a stage's folder, or a checkpoint-{step} in it.
        model: the pipeline it was trained from, which gives all but the denoiser.
        out: the folder to write.
        samplers: see `Cover`.
        progress: is told of every layer.
        others: what is packed beside the UNet, without training, with compact scales; all else is copied as it is.
        scale_dtype: as `init_pipeline`; codes stay as they were trained.

    Returns:
        What each packed component says about itself, the denoiser first.

    Raises:
        InputError: a student of another class than the pipeline's denoiser.
    """
    source = _source(model)
    name = source.denoiser.name
    student = load_student(checkpoint)
    if denoiser_of(student).name != source.denoiser.class_name:
        raise InputError(
            f"{checkpoint}: got a {denoiser_of(student).name} for {model}, whose {name} is a "
            f"{source.denoiser.class_name}: wanted --model with the pipeline that it was trained from"
        )
    choice = choose_features(student, samplers, _scheduler_config(source, samplers))
    provenance = {"checkpoint": checkpoint.name, **({"notes": [choice.note]} if choice.note else {})}
    parts, notes_of = {name: parts_of_model(student, choice.features)}, {name: provenance}
    for other, (part, made) in other_parts(source, others, ScaleInit.COMPACT, progress).items():
        parts[other], notes_of[other] = part, made
    return _write(parts, source, out, notes_of, progress, scale_dtype)


def _source(model: str, config: str | None = None, without: tuple[str, ...] = ()) -> PipelineFolder:
    """The folder to pack from: whole, and with a denoiser that can be packed."""
    source = resolve(model, config).without(without)
    _ = source.denoiser
    check_complete(source, check_dense)
    return source


def _open(model: str, config: str | None, without: tuple[str, ...]) -> tuple[PipelineFolder, ModelFolder]:
    source = _source(model, config, without)
    architecture = source.denoiser.architecture
    assert architecture is not None
    return source, open_model(source.denoiser.folder, architecture)


def _scheduler_config(source: PipelineFolder, samplers: Cover) -> dict[str, Any]:
    """What samplers' steps are found by; nothing where a component stands alone and no sampler is named."""
    scheduler = source.component("scheduler")
    if scheduler is None:
        if samplers not in (BASIS, None):
            raise InputError(f"cover: got {source.path} without a scheduler, wanted its pipeline, with --config FOLDER")
        return {}
    config: dict[str, Any] = read_json(scheduler.folder / "scheduler_config.json")
    return config


def _write(
    parts: Mapping[str, ModelParts],
    source: PipelineFolder,
    out: Path,
    provenance: Mapping[str, Mapping[str, Any]],
    progress: ProgressSink,
    scale_dtype: ScaleDtype,
) -> dict[str, PackedConfig]:
    if scale_dtype == "float16":
        parts = {name: with_float16_scales(part) for name, part in parts.items()}
        provenance = {name: {**notes, "scale_dtype": scale_dtype} for name, notes in provenance.items()}
    elif scale_dtype != "float32":
        raise InputError(f"scale_dtype: got {scale_dtype!r}, wanted float32 or float16")
    with progress.timed("pack") as tell:
        return write_parts(parts, source, out, source_sha256=source.source_sha256, provenance=provenance, progress=tell)
