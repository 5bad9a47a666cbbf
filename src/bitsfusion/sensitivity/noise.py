"""Noisy latents of the training data, on which candidates are measured."""

from __future__ import annotations

from typing import Any

import torch

from bitsfusion.data.batches import TrainingData
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.process import process_of
from bitsfusion.diffusion.samples import GuidedSamples, NoisySamples


@torch.no_grad()
def noisy_latents(pipeline: Any, data: TrainingData, step: int, size: int, seed: int, spread: bool) -> NoisySamples:
    """`size` samples of batch `step` of `data`, noised by the pipeline's process; a function of the arguments alone.

    Args:
        spread: time steps evenly over the whole schedule, instead of uniformly random ones.
    """
    batch = data.batch(step=step, rank=0, world_size=1, size=size)
    model: Any = pipeline_denoiser(pipeline)
    process = process_of(pipeline.scheduler, model).at_size(batch.latents.shape[-2:])
    generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
    noise = torch.randn(batch.latents.shape, generator=generator)
    timesteps = process.spread(size) if spread else process.uniform(size, generator)
    noisy = process.add_noise(batch.latents.float(), noise, timesteps)
    conditioning = conditioner_of(pipeline).encode(batch.prompts, noisy.shape[-2:], batch.sizes)
    return NoisySamples(noisy, timesteps, conditioning).to(model.device, model.dtype)


@torch.no_grad()
def guided_latents(pipeline: Any, inputs: NoisySamples, guidance: float) -> GuidedSamples:
    """`inputs` with the pipeline's empty prompt."""
    null = conditioner_of(pipeline).null(len(inputs), inputs.noisy.shape[-2:])
    return GuidedSamples(inputs, null.to(inputs.noisy.device, inputs.noisy.dtype), guidance)
