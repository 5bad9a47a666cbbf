"""The loss of one micro-batch: the teacher's and the student's forward, compared (Stage I), or the noise (Stage II)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.losses import BlockFeatures, feature_distillation, noise_distillation, noise_prediction
from bitsfusion.training.samples import Sample


class Objective:
    """Student and teacher on one micro-batch."""

    def __init__(
        self,
        student: UNet2DConditionModel,
        teacher: UNet2DConditionModel | None,
        text_encoder: nn.Module,
        noise_scheduler: Any,
        config: TrainingConfig,
        accelerator: Accelerator,
        stack: contextlib.ExitStack,
    ) -> None:
        self._teacher = teacher if config.stage == 1 else None
        self._text_encoder, self._scheduler, self._accelerator = text_encoder, noise_scheduler, accelerator
        self._feature_weight = config.feature_weight if self._teacher else 0.0
        self._features: tuple[BlockFeatures, BlockFeatures] | None = None
        if self._teacher is not None and self._feature_weight:
            self._features = (
                stack.enter_context(BlockFeatures(student)),
                stack.enter_context(BlockFeatures(self._teacher)),
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The student may be used for something else inside."""
        with self._features[0].paused() if self._features else contextlib.nullcontext():
            yield

    def __call__(self, model: nn.Module, part: Sample) -> tuple[dict[str, Tensor], Tensor]:
        """The scalar losses, "loss" among them with its gradient, and each sample's noise loss ([n], detached)."""
        device = self._accelerator.device
        latents, noise = part.latents.to(device), part.noise.to(device)
        timesteps = part.timesteps.to(device)
        noisy = self._scheduler.add_noise(latents, noise, timesteps)
        targets: Tensor | None = None
        with torch.no_grad(), self._accelerator.autocast():
            states = self._text_encoder(part.input_ids.to(device))[0].float()
            if self._teacher is not None:
                dtype = self._teacher.dtype
                targets = self._teacher(noisy.to(dtype), timesteps, states.to(dtype), return_dict=False)[0]
        with self._accelerator.autocast():
            output = model(noisy, timesteps, states, return_dict=False)[0].float()
        if targets is None:
            errors = noise_prediction(output, latents, noise, timesteps, self._scheduler)
        else:
            errors = noise_distillation(output, targets)
        noise_loss = errors.mean()
        losses = {"loss": noise_loss, "noise_loss": noise_loss}
        if self._features:
            ours, theirs = self._features
            losses["feature_loss"] = feature_distillation(ours.take(), theirs.take())
            losses["loss"] = noise_loss + self._feature_weight * losses["feature_loss"]
        return losses, errors.detach()
