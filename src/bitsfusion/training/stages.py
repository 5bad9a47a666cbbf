"""The two stages by name (section 4.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from bitsfusion.data.batches import TrainingData
from bitsfusion.errors import InputError
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.loop import Progress, TrainingResult, train


def stage_one(
    student: UNet2DConditionModel,
    teacher: UNet2DConditionModel,
    text_encoder: nn.Module,
    tokenizer: Any,
    noise_scheduler: Any,
    data: TrainingData,
    config: TrainingConfig,
    out_dir: Path,
    progress: Progress | None = None,
) -> TrainingResult:
    """CFG-aware noise distillation with feature distillation, t ~ Beta(3, 1) (Eqs. 6 and 7). See `train`."""
    if config.stage != 1:
        raise InputError(f"stage: got {config.stage}, wanted 1")
    return train(student, teacher, text_encoder, tokenizer, noise_scheduler, data, config, out_dir, progress)


def stage_two(
    student: UNet2DConditionModel,
    text_encoder: nn.Module,
    tokenizer: Any,
    noise_scheduler: Any,
    data: TrainingData,
    config: TrainingConfig,
    out_dir: Path,
    progress: Progress | None = None,
) -> TrainingResult:
    """Fine-tunes Stage I's student on the true noise, with text dropping and the same time steps. See `train`."""
    if config.stage != 2:
        raise InputError(f"stage: got {config.stage}, wanted 2")
    return train(student, None, text_encoder, tokenizer, noise_scheduler, data, config, out_dir, progress)
