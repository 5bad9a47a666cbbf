"""How far a quantized model's prediction is from its teacher's and from the truth, on fixed noisy latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.data.batches import TrainingData
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.process import process_of
from bitsfusion.diffusion.samples import NoisySamples

_BATCH = 64
CURVE_SAMPLES = 32
"""At each time step of a curve."""


@dataclass(frozen=True)
class NoiseProbe:
    """Noisy latents that every model is asked about, on the device of the pipeline that they are made for.

    Fields:
        samples: what is asked, float32.
        target: [n, c, h, w] float32, what a perfect model predicts.
        latent_weight: [n] float32, what turns a squared difference of predictions into one of latents (Eq. 9).
    """

    samples: NoisySamples
    target: Tensor
    latent_weight: Tensor


@torch.no_grad()
def make_probe(
    data: TrainingData, pipeline: Any, samples: int, seed: int, timesteps: Tensor | None = None
) -> NoiseProbe:
    """`samples` noisy latents of `data` on the denoiser's device.

    Args:
        pipeline: gives text encoders and the noise schedule.
        timesteps: [samples], where they are asked; evenly over the whole schedule where not given.
    """
    model = pipeline_denoiser(pipeline)
    conditioner, device = conditioner_of(pipeline), next(model.parameters()).device
    batch = data.batch(step=seed, rank=0, world_size=1, size=samples)
    process = process_of(pipeline.scheduler, model).at_size(batch.latents.shape[-2:])
    generator = torch.Generator("cpu").manual_seed(seed)
    if timesteps is None:
        timesteps = process.spread(samples)[torch.randperm(samples, generator=generator)]
    latents, noise = batch.latents, torch.randn(batch.latents.shape, generator=generator)
    places = [range(start, min(start + _BATCH, samples)) for start in range(0, samples, _BATCH)]
    parts = [batch.rows(place) for place in places]
    conditioning = Conditioning.cat([conditioner.encode(p.prompts, latents.shape[-2:], p.sizes) for p in parts])
    asked = NoisySamples(process.add_noise(latents, noise, timesteps), timesteps, conditioning)
    weight = process.latent_weight(timesteps)
    return NoiseProbe(asked.to(device), process.target(latents, noise, timesteps).to(device), weight.to(device))


@torch.no_grad()
def predict(model: nn.Module, probe: NoiseProbe) -> Tensor:
    """The model's output for every noisy latent of `probe`: [n, c, h, w]."""
    return torch.cat([part.predict(model) for part in probe.samples.split(_BATCH)])


def mean_squared(left: Tensor, right: Tensor) -> float:
    """Mean squared difference of two predictions of one shape."""
    return float((left - right).square().mean())


def time_step_curve(
    student: nn.Module,
    pipeline: Any,
    data: TrainingData,
    points: int = 20,
    each: int = CURVE_SAMPLES,
    covered: Sequence[int] | None = None,
) -> list[tuple[int, float]]:
    """(t, mean latent error) at evenly spaced steps: (1 - abar_t) / abar_t x ||eps_fp - eps_q||^2 (Eq. 9).

    The squared norm is a mean over latent elements, so that models of any size compare.

    Args:
        student: the quantized model.
        pipeline: the full-precision one.
        points: how many steps.
        each: samples at each of them.
        covered: the steps that the student knows, to choose from; all where not given.
    """
    process = process_of(pipeline.scheduler)
    steps = (torch.arange(points) + 1) * process.steps // points - 1
    if covered is not None:
        known = torch.tensor(sorted(covered))
        steps = known[((torch.arange(points) + 1) * len(known) // points - 1).clamp(min=0)].unique()
    probe = make_probe(data, pipeline, len(steps) * each, seed=9, timesteps=steps.repeat_interleave(each))
    teacher = pipeline_denoiser(pipeline)
    errors = (predict(student, probe) - predict(teacher, probe)).square().flatten(1).mean(1)
    weighted = (errors * probe.latent_weight).view(len(steps), each).mean(1)
    return list(zip(steps.tolist(), weighted.tolist(), strict=True))
