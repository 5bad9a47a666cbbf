"""Calibration data: what the UNet sees while it draws, at time steps spread over the whole trajectory.

Q-Diffusion's section 4.1: activations change with the time step, so that calibration inputs are taken at regular
intervals of the full-precision model's own denoising, with and without the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.architectures.registry import denoiser_of
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.diffusion.conditioning.base import encode_captions
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.samplers import Sampler, build_scheduler
from bitsfusion.diffusion.samples import GuidedSamples, NoisySamples

_AT_ONCE = 64


@torch.no_grad()
def predictions(model: nn.Module, calibration: NoisySamples) -> Tensor:
    """The model's output for all: [n, c, h, w]."""
    return torch.cat([part.predict(model) for part in calibration.split(_AT_ONCE)])


@torch.no_grad()
def drawn_calibration(
    pipeline: Any, captions: Sequence[str], samples: int, *, steps: int = 20, guidance: float = 7.5, seed: int = 0
) -> NoisySamples:
    """`samples` inputs from the trajectories (DDIM) of one image a caption, half of them with the null prompt.

    Args:
        pipeline: the full-precision one.
        captions: one or more.
        samples: as many as wanted; evenly over images and time steps, but for what is left over.
        steps: of DDIM.
        guidance: of classifier-free guidance while drawing.
        seed: of the first noise, and of the choice of samples.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    model, conditioner = pipeline_denoiser(pipeline), conditioner_of(pipeline)
    scheduler: Any = build_scheduler(Sampler.DDIM, pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    family, count = denoiser_of(model), len(captions)
    size = family.latent_size(model.config)
    given = encode_captions(conditioner, captions, (size, size))
    null = conditioner.null(count, (size, size))
    latents = torch.randn(count, model.config.in_channels, size, size, generator=generator)
    latents = latents * scheduler.init_noise_sigma
    seen = []
    for step in scheduler.timesteps:
        seen.append(latents)
        asked = GuidedSamples(NoisySamples(latents, step.expand(count), given), null, guidance)
        latents = scheduler.step(asked.predict(model), step, latents, return_dict=False)[0]
    chosen = torch.randperm(steps * count * 2, generator=generator)[:samples]
    place, prompted = chosen // 2, chosen % 2 == 1
    image, time = place % count, place // count
    rows = image + count * (~prompted)
    return NoisySamples(torch.cat(seen)[place], scheduler.timesteps[time], Conditioning.cat([given, null]).rows(rows))
