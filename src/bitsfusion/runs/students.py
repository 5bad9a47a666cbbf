"""The students of a workspace: its denoiser quantized before training, and what a stage of training makes of one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from diffusers import ModelMixin

from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.nn.rounded import put_rounded
from bitsfusion.numerics import ScaleInit
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.workspace import Workspace
from bitsfusion.training.checkpoint import identity, save_student
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.loop import train

Start: TypeAlias = ScaleInit | CalibrationJob
"""How a student begins: by scales of its weights alone, or calibrated."""


def made_by(start: Start, model: str) -> dict[str, Any]:
    """Plain JSON: what an untrained student depends on beside the model and its bits."""
    return {"scale_init": start.value} if isinstance(start, ScaleInit) else start.provenance(model)


def save_start(ours: Workspace, folder: Path, bits: Mapping[str, int], start: Start, **notes: Any) -> None:
    """Writes the untrained student to `folder`; a calibration that was killed continues.

    Args:
        bits: of every layer that is quantized.
        notes: said of it beside `made_by`.
    """
    student, model = copy.deepcopy(ours.denoiser), ours.config.model
    if isinstance(start, ScaleInit):
        fake_quantize_model(student, bits, start)
    else:
        kept = start.folder(folder, model, ours.source_sha256, bits)
        put_rounded(student, start.run(ours.pipeline, model, bits, ours.progress, kept).layers)
        shutil.rmtree(kept, ignore_errors=True)
    save_student(folder, student, identity(student, made_by(start, model) | notes, "", 1))


def train_student(ours: Workspace, student: ModelMixin, config: TrainingConfig, folder: Path, name: str) -> None:
    """One stage on the workspace's data, in Stage I with its denoiser as the teacher; reported as `name`.

    Only the finished student stays in `folder`: the next steps need no more.
    """
    teacher = None
    if config.stage == 1:
        teacher = ours.denoiser if config.teacher_dtype == "float32" else copy.deepcopy(ours.denoiser)
    train(student, teacher, ours.pipeline, ours.data, config, folder, ours.progress.training(name))
    if ours.folder.ranks.main:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
