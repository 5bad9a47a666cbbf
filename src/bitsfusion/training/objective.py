"""The loss of one micro-batch: the teacher's and the student's forward, compared (Stage I), or the noise (Stage II)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bitsfusion.diffusion.conditioning import Conditioner
from bitsfusion.diffusion.denoise import denoise
from bitsfusion.diffusion.process import Process
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.losses import BlockFeatures, feature_distillation, noise_distillation, noise_prediction
from bitsfusion.training.samples import Sample


class Objective:
    """Student and teacher on one micro-batch."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        conditioner: Conditioner,
        process: Process,
        config: TrainingConfig,
        accelerator: Accelerator,
        stack: contextlib.ExitStack,
    ) -> None:
        self._teacher = teacher if config.stage == 1 else None
        self._conditioner, self._process, self._accelerator = conditioner, process, accelerator
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
        latents, noise = part.batch.latents.to(device), part.noise.to(device)
        timesteps = part.timesteps.to(device)
        noisy = latents
        if part.batch.timesteps is None:
            noisy = self._process.add_noise(latents, noise, timesteps)
        predicted: Tensor | None = None
        with torch.no_grad(), self._accelerator.autocast():
            batch = part.batch
            conditioning = self._conditioner.encode(batch.prompts, noisy.shape[-2:], batch.sizes, part.dropped)
            conditioning = conditioning.to(device)
            if self._teacher is not None:
                dtype = next(self._teacher.parameters()).dtype
                predicted = denoise(self._teacher, noisy.to(dtype), timesteps, conditioning.to(device, dtype))
        with self._accelerator.autocast():
            output = denoise(model, noisy, timesteps, conditioning).float()
        if predicted is None:
            errors = noise_prediction(output, self._process.target(latents, noise, timesteps))
        else:
            errors = noise_distillation(output, predicted)
        noise_loss = errors.mean()
        losses = {"loss": noise_loss, "noise_loss": noise_loss}
        if self._features:
            ours, theirs = self._features
            losses["feature_loss"] = feature_distillation(ours.take(), theirs.take())
            losses["loss"] = noise_loss + self._feature_weight * losses["feature_loss"]
        return losses, errors.detach()
