"""What a step trains on: the data's batch with noise, time steps and null prompts (Eq. 6), repeatable by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitsfusion.data.batches import Batch
from bitsfusion.diffusion.process import Process
from bitsfusion.errors import InputError
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.time_steps import time_step_sampler


@dataclass(frozen=True)
class Sample:
    """What one process trains on in one step.

    Fields:
        batch: latents and captions.
        noise: [n, c, h, w] float32; of no use where the batch's latents are noisy already.
        timesteps: [n], as the process counts them.
        dropped: [n] bool, the samples that get the null prompt.
    """

    batch: Batch
    noise: Tensor
    timesteps: Tensor
    dropped: Tensor

    def to(self, device: torch.device) -> Sample:
        """On another device; from pinned memory without waiting. Sizes stay where they are, who reads them is there."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pinned(self, device: torch.device) -> Sample:
        """In memory that a CUDA device copies from without waiting; for other devices as it is."""
        return self._map(Tensor.pin_memory) if device.type == "cuda" else self

    def _map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        prompts = {name: function(tensor) for name, tensor in self.batch.prompts.items()}
        batch = replace(self.batch, latents=function(self.batch.latents), prompts=prompts)
        return Sample(batch, function(self.noise), function(self.timesteps), function(self.dropped))

    def split(self, size: int) -> list[Sample]:
        """In parts of `size` samples."""
        places = range(len(self.noise))
        cuts = [places[start : start + size] for start in places[::size]]
        return [
            Sample(
                self.batch.rows(cut),
                self.noise[cut.start : cut.stop],
                self.timesteps[cut.start : cut.stop],
                self.dropped[cut.start : cut.stop],
            )
            for cut in cuts
        ]


def draw_sample(batch: Batch, config: TrainingConfig, process: Process, first: int, step: int) -> Sample:
    """Adds noise, time steps and null prompts to a batch.

    What a sample gets is a pure function of (config.seed, stage, step, its place in the step's samples of all
    processes): how many processes share them does not matter.

    Args:
        batch: n samples.
        process: how time steps are counted.
        first: the place of the batch's first sample among the step's samples of all processes.

    Raises:
        InputError: latents that are noisy already, in Stage II, which needs images.
    """
    if batch.timesteps is not None and config.stage == 2:
        raise InputError("stage: got 2 with trajectories, wanted 1: they show what the teacher does, and no images")
    process = process.at_size(batch.latents.shape[-2:], config.timesteps.steps)
    draw = time_step_sampler(config.timesteps, process)
    count = len(batch.latents)
    timesteps = torch.empty(count, dtype=process.time_steps(torch.zeros(1)).dtype)
    dropped = torch.empty(count, dtype=torch.bool)
    noise = torch.empty(batch.latents.shape)
    for index in range(count):
        rng = np.random.default_rng([config.seed, config.stage, step, first + index])
        timesteps[index : index + 1] = draw(1, rng)
        dropped[index] = rng.random() < config.text_dropout
        noise[index] = torch.from_numpy(rng.standard_normal(tuple(noise.shape[1:]), dtype=np.float32))
    return Sample(batch, noise, timesteps if batch.timesteps is None else batch.timesteps, dropped)
