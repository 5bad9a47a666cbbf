"""How far a quantized UNet's noise prediction is from its teacher's and from the truth, on fixed noisy latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.data.batches import TrainingData

_BATCH = 64


@dataclass(frozen=True)
class NoiseProbe:
    """Noisy latents that every model is asked about, on the CPU.

    noisy, target: [n, c, h, w] float32, the target as the noise scheduler's prediction type has it;
    timesteps: [n] int64; context: text states, [n, tokens, d] float32; latent_weight: [n] float32, what
    turns a squared difference of predictions into one of latents (Eq. 9).
    """

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    context: Tensor
    latent_weight: Tensor


@torch.no_grad()
def make_probe(
    data: TrainingData,
    text_encoder: Any,
    noise_scheduler: Any,
    samples: int,
    seed: int,
    timesteps: Tensor | None = None,
) -> NoiseProbe:
    """`samples` noisy latents of `data`, evenly over all time steps or at `timesteps` ([samples] int64)."""
    batch = data.batch(step=seed, rank=0, world_size=1, size=samples)
    generator = torch.Generator("cpu").manual_seed(seed)
    total = noise_scheduler.config.num_train_timesteps
    if timesteps is None:
        timesteps = (torch.arange(samples) * total // samples)[torch.randperm(samples, generator=generator)]
    parts = batch.input_ids.to(text_encoder.device).split(_BATCH)
    context = torch.cat([text_encoder(ids).last_hidden_state.float().cpu() for ids in parts])
    noise = torch.randn(batch.latents.shape, generator=generator)
    signal = noise_scheduler.alphas_cumprod[timesteps]
    velocity = noise_scheduler.config.prediction_type == "v_prediction"
    return NoiseProbe(
        noisy=noise_scheduler.add_noise(batch.latents, noise, timesteps),
        target=noise_scheduler.get_velocity(batch.latents, noise, timesteps) if velocity else noise,
        timesteps=timesteps,
        context=context,
        latent_weight=(1 - signal) if velocity else (1 - signal) / signal,
    )


@torch.no_grad()
def predict(unet: nn.Module, probe: NoiseProbe) -> Tensor:
    """The UNet's output for every noisy latent of `probe`, computed where the UNet is: [n, c, h, w] on the CPU."""
    device = next(unet.parameters()).device
    parts = zip(probe.noisy.split(_BATCH), probe.timesteps.split(_BATCH), probe.context.split(_BATCH), strict=True)
    return torch.cat([unet(*(tensor.to(device) for tensor in part)).sample.cpu() for part in parts])


def mean_squared(left: Tensor, right: Tensor) -> float:
    """Mean squared difference of two predictions of one shape."""
    return float((left - right).square().mean())


def time_step_curve(
    student: nn.Module,
    teacher: nn.Module,
    data: TrainingData,
    text_encoder: Any,
    noise_scheduler: Any,
    points: int = 20,
    each: int = 32,
    covered: Sequence[int] | None = None,
) -> list[tuple[int, float]]:
    """(t, mean latent error) at evenly spaced steps: (1 - abar_t) / abar_t x ||eps_fp - eps_q||^2 (Eq. 9).

    The squared norm is a mean over latent elements, so that models of any size compare.

    Args:
        points: how many steps.
        each: samples at each of them.
        covered: the steps that the student knows, to choose from; all where not given.
    """
    total = noise_scheduler.config.num_train_timesteps
    steps = (torch.arange(points) + 1) * total // points - 1
    if covered is not None:
        known = torch.tensor(sorted(covered))
        steps = known[((torch.arange(points) + 1) * len(known) // points - 1).clamp(min=0)].unique()
    probe = make_probe(
        data, text_encoder, noise_scheduler, len(steps) * each, seed=9, timesteps=steps.repeat_interleave(each)
    )
    errors = (predict(student, probe) - predict(teacher, probe)).square().mean((1, 2, 3))
    weighted = (errors * probe.latent_weight).view(len(steps), each).mean(1)
    return list(zip(steps.tolist(), weighted.tolist(), strict=True))
