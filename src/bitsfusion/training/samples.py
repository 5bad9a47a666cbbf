"""What a step trains on: the data's batch with noise, time steps and null prompts (Eq. 6), repeatable by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsfusion.data.batches import Batch
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.time_steps import sample_time_steps


@dataclass(frozen=True)
class Sample:
    """What one process trains on in one step: the batch with its noise, time steps and null prompts."""

    latents: Tensor
    input_ids: Tensor
    noise: Tensor
    timesteps: Tensor
    names: tuple[str, ...]

    def split(self, size: int) -> list[Sample]:
        """In parts of `size` samples."""
        cuts = [slice(start, start + size) for start in range(0, len(self.latents), size)]
        return [
            Sample(self.latents[c], self.input_ids[c], self.noise[c], self.timesteps[c], self.names[c]) for c in cuts
        ]


def draw_sample(batch: Batch, null_ids: Tensor, config: TrainingConfig, rank: int, step: int, total: int) -> Sample:
    """Adds noise, time steps and null prompts to a batch: a pure function of (config.seed, stage, rank, step).

    Args:
        batch: n samples.
        null_ids: [tokens] int64, the empty prompt's.
        total: the number of diffusion time steps.
    """
    rng = np.random.default_rng([config.seed, config.stage, rank, step])
    count = len(batch.latents)
    timesteps = sample_time_steps(config.timesteps, count, rng, total)
    dropped = torch.from_numpy(rng.random(count) < config.text_dropout)
    noise = torch.from_numpy(rng.standard_normal(tuple(batch.latents.shape), dtype=np.float32))
    input_ids = torch.where(dropped[:, None], null_ids, batch.input_ids)
    return Sample(batch.latents, input_ids, noise, timesteps, batch.names)
