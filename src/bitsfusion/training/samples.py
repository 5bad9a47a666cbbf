"""What a step trains on: the data's batch with noise, time steps and null prompts (Eq. 6), repeatable by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsfusion.data.batches import Batch
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.time_steps import time_step_sampler


@dataclass(frozen=True)
class Sample:
    """What one process trains on in one step: the batch with its noise, time steps and null prompts."""

    latents: Tensor
    input_ids: Tensor
    noise: Tensor
    timesteps: Tensor
    names: tuple[str, ...]

    def to(self, device: torch.device) -> Sample:
        """On another device; from pinned memory without waiting."""
        latents, ids, noise, timesteps = (
            tensor.to(device, non_blocking=tensor.is_pinned())
            for tensor in (self.latents, self.input_ids, self.noise, self.timesteps)
        )
        return Sample(latents, ids, noise, timesteps, self.names)

    def pinned(self, device: torch.device) -> Sample:
        """In memory that a CUDA device copies from without waiting; for other devices as it is."""
        if device.type != "cuda":
            return self
        latents, ids, noise, timesteps = (
            tensor.pin_memory() for tensor in (self.latents, self.input_ids, self.noise, self.timesteps)
        )
        return Sample(latents, ids, noise, timesteps, self.names)

    def split(self, size: int) -> list[Sample]:
        """In parts of `size` samples."""
        cuts = [slice(start, start + size) for start in range(0, len(self.latents), size)]
        return [
            Sample(self.latents[c], self.input_ids[c], self.noise[c], self.timesteps[c], self.names[c]) for c in cuts
        ]


def draw_sample(batch: Batch, null_ids: Tensor, config: TrainingConfig, first: int, step: int, total: int) -> Sample:
    """Adds noise, time steps and null prompts to a batch.

    What a sample gets is a pure function of (config.seed, stage, step, its place in the step's samples of all
    processes): how many processes share them does not matter.

    Args:
        batch: n samples.
        null_ids: [tokens] int64, the empty prompt's.
        first: the place of the batch's first sample among the step's samples of all processes.
        total: the number of diffusion time steps.
    """
    draw = time_step_sampler(config.timesteps, total)
    count = len(batch.latents)
    timesteps = torch.empty(count, dtype=torch.int64)
    dropped = torch.empty(count, 1, dtype=torch.bool)
    noise = torch.empty(batch.latents.shape)
    for index in range(count):
        rng = np.random.default_rng([config.seed, config.stage, step, first + index])
        timesteps[index : index + 1] = draw(1, rng)
        dropped[index] = rng.random() < config.text_dropout
        noise[index] = torch.from_numpy(rng.standard_normal(tuple(noise.shape[1:]), dtype=np.float32))
    input_ids = torch.where(dropped, null_ids, batch.input_ids)
    return Sample(batch.latents, input_ids, noise, timesteps, batch.names)
