"""Equation 9 on a model pair: at which time steps a quantized model errs, as a file that training can draw by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitsfusion.data.batches import TrainingData
from bitsfusion.devices import AUTO, placed, resolve
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.samplers import Coverage
from bitsfusion.evaluation.noise import time_step_curve
from bitsfusion.io.atomic import remove_leftovers
from bitsfusion.io.texts import write_json
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.training.checkpoint import STUDENT_INFO, load_student

CURVE_SCHEMA_VERSION = 1


def load_quantized(folder: Path) -> Any:
    """The denoiser of a finished stage, a checkpoint or a packed pipeline folder, float32, in eval mode.

    Raises:
        InputError: it is none of them.
    """
    if (folder / STUDENT_INFO).is_file():
        return load_student(folder)
    return pipeline_denoiser(load_pipeline(str(folder))).eval()


def measure_time_steps(
    pipeline: Any,
    folder: Path,
    data: TrainingData,
    out: Path,
    points: int = 20,
    each: int = 32,
    device: str = AUTO,
) -> list[tuple[int, float]]:
    """Writes {schema_version, latent_error: {folder's name: [[t, error], ...]}} to `out`; see `time_step_curve`.

    Args:
        pipeline: the full-precision one.
        folder: see `load_quantized`; a packed one with exact rows is measured at the steps it covers.
        data: latents and captions.
        out: a JSON file, which `timesteps: {kind: measured, curve: FILE}` reads.
        points: time steps.
        each: samples at each.
        device: where it is measured, see `devices.resolve`.
    """
    where = resolve(device)
    student = load_quantized(folder).to(where)
    coverage = getattr(getattr(student, "time_proj", None), "coverage", None)
    rows = [int(step) for step in coverage.steps if step == int(step)] if isinstance(coverage, Coverage) else None
    with placed(pipeline, where):
        curve = time_step_curve(student, pipeline, data, points, each, rows)
    remove_leftovers(out)
    write_json(out, {"schema_version": CURVE_SCHEMA_VERSION, "latent_error": {folder.resolve().name: curve}})
    return curve
