"""Calibration data: what the UNet sees while it draws, at time steps spread over the whole trajectory.

Q-Diffusion's section 4.1: activations change with the time step, so that calibration inputs are taken at regular
intervals of the full-precision model's own denoising, with and without the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitsfusion.diffusion.samplers import Sampler, build_scheduler

_AT_ONCE = 64


@dataclass(frozen=True)
class Calibration:
    """Inputs of the UNet: noisy [n, c, h, w] and context [n, tokens, d] float32, timesteps [n] int64."""

    noisy: Tensor
    timesteps: Tensor
    context: Tensor

    def parts(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """In batches, in order."""
        split = (self.noisy.split(_AT_ONCE), self.timesteps.split(_AT_ONCE), self.context.split(_AT_ONCE))
        return list(zip(*split, strict=True))

    @torch.no_grad()
    def predict(self, unet: Any) -> Tensor:
        """The UNet's output for all: [n, c, h, w]."""
        return torch.cat([unet(*part, return_dict=False)[0] for part in self.parts()])


@torch.no_grad()
def drawn_calibration(
    pipeline: Any, captions: Sequence[str], samples: int, *, steps: int = 20, guidance: float = 7.5, seed: int = 0
) -> Calibration:
    """`samples` inputs from the trajectories (DDIM) of one image a caption, half of them with the null prompt.

    Args:
        pipeline: the full-precision StableDiffusionPipeline.
        captions: one or more.
        samples: as many as wanted; evenly over images and time steps, but for what is left over.
        steps: of DDIM.
        guidance: of classifier-free guidance while drawing.
        seed: of the first noise, and of the choice of samples.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    unet, tokenizer = pipeline.unet, pipeline.tokenizer
    scheduler: Any = build_scheduler(Sampler.DDIM, pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    options = dict(padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    states = pipeline.text_encoder(tokenizer(list(captions), **options).input_ids)[0].float()
    null = pipeline.text_encoder(tokenizer([""], **options).input_ids)[0].float().expand_as(states)
    size = unet.config.sample_size
    latents = torch.randn(len(captions), unet.config.in_channels, size, size, generator=generator)
    latents = latents * scheduler.init_noise_sigma
    seen = []
    for step in scheduler.timesteps:
        seen.append(latents)
        times = step.expand(2 * len(latents))
        both = unet(torch.cat([latents, latents]), times, torch.cat([null, states]), return_dict=False)[0]
        without, given = both.chunk(2)
        latents = scheduler.step(without + guidance * (given - without), step, latents, return_dict=False)[0]
    count = len(captions)
    chosen = torch.randperm(steps * count * 2, generator=generator)[:samples]
    place, prompted = chosen // 2, chosen % 2 == 1
    image, time = place % count, place // count
    context = torch.where(prompted[:, None, None], states[image], null[image])
    return Calibration(torch.cat(seen)[place], scheduler.timesteps[time], context)
