"""Noisy latents, what a UNet is asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from bitsfusion.data.batches import TrainingData


@dataclass(frozen=True)
class NoisyLatents:
    """What a UNet is asked about: latents z_t [n, c, h, w], time steps t [n] int64, text states [n, tokens, d]."""

    latents: Tensor
    timesteps: Tensor
    context: Tensor

    def split(self, size: int) -> Iterator[NoisyLatents]:
        """Parts of at most `size` samples."""
        parts = zip(self.latents.split(size), self.timesteps.split(size), self.context.split(size), strict=True)
        return (NoisyLatents(*part) for part in parts)

    def predict(self, unet: Any) -> Tensor:
        """The UNet's output for these, [n, c, h, w]; with gradients unless switched off outside."""
        output: Tensor = unet(self.latents, self.timesteps, encoder_hidden_states=self.context).sample
        return output


@torch.no_grad()
def noisy_latents(pipeline: Any, data: TrainingData, step: int, size: int, seed: int, spread: bool) -> NoisyLatents:
    """`size` samples of batch `step` of `data`, noised by the pipeline's schedule; a function of the arguments alone.

    Args:
        spread: time steps evenly over the whole schedule, instead of uniformly random ones.
    """
    batch = data.batch(step=step, rank=0, world_size=1, size=size)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    total = scheduler.config.num_train_timesteps
    generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
    noise = torch.randn(batch.latents.shape, generator=generator)
    if spread:
        timesteps = torch.arange(size) * total // size
    else:
        timesteps = torch.randint(0, total, (size,), generator=generator)
    unet = pipeline.unet
    context = pipeline.text_encoder(batch.input_ids.to(pipeline.text_encoder.device))[0]
    noisy = scheduler.add_noise(batch.latents.float(), noise, timesteps)
    return NoisyLatents(
        noisy.to(unet.device, unet.dtype), timesteps.to(unet.device), context.to(unet.device, unet.dtype)
    )
