"""A run of training that kills its process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from bitsfusion.training import checkpoint
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.loop import train

from ..tiny.unet import build_unet
from .small_run import build_student, run_parts

CONFIG = TrainingConfig(
    train_batch_size=4,
    learning_rate=1e-3,
    lr_scheduler="cosine",
    lr_warmup_steps=2,
    max_train_steps=9,
    checkpointing_steps=3,
    logging_steps=2,
    ema_decay=0.9,
)


def killed_run(out_dir: Path, where: str, changes: dict[str, object]) -> None:
    """CONFIG with `changes`; `where` is "step N", "saving" (in the middle of the second checkpoint) or "never"."""
    config = TrainingConfig.model_validate({**CONFIG.model_dump(exclude_defaults=True), **changes})

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "saving":  # the second checkpoint's weights are there and its state is not
        save = checkpoint._save
        checkpoint._save = lambda tensors, path: (
            die() if "checkpoint-6" in str(path) and "ema" in path.name else save(tensors, path)
        )

    def watch(step: int, total: int, metrics: dict[str, float]) -> None:
        if where == f"step {step}":
            die()

    teacher = build_unet()
    train(build_student(teacher), teacher, config=config, out_dir=out_dir, progress=watch, **run_parts())
