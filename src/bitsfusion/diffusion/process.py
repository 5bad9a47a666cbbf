"""The forward process that a denoiser was trained on: how latents are noised, and what the model predicts.

A pipeline's scheduler says which: `prediction_type` epsilon or v_prediction on a noise schedule (DDPM), or flow
matching, where z_t = (1 - s) z_0 + s noise and t = 1000 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor, nn

from bitsfusion.architectures.registry import denoiser_of
from bitsfusion.errors import InputError

_FLOW_CLASSES = ("FlowMatch", "SanaFlow", "SCMScheduler")
_USUAL_STEPS = 50
_FLOW_FLAGS = ("use_flow_sigmas", "use_flow_sigma")


class Process(Protocol):
    """Noising, target and weights at time steps.

    All tensors may be on any device; results are on the latents'. Time steps are [n], int64 of a noise schedule and
    float32 of a flow.
    """

    @property
    def steps(self) -> int:
        """Time steps of the schedule, num_train_timesteps."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t of z_0 and noise, each [n, c, h, w]."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect model predicts, [n, c, h, w]."""
        ...

    def latent_weight(self, timesteps: Tensor) -> Tensor:
        """[n] float32: what turns a squared difference of predictions into one of predicted latents (Eq. 9)."""
        ...

    def time_steps(self, unit: Tensor) -> Tensor:
        """[n] in [0, 1), from little noise to all noise -> the time steps there."""
        ...

    def spread(self, count: int) -> Tensor:
        """`count` time steps, evenly over the schedule."""
        ...

    def uniform(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` random time steps, on the generator's device."""
        ...

    def at_size(self, latent_size: Sequence[int], steps: int | None = None) -> Process:
        """The process on latents of this height and width: larger pictures want more noise in some flows.

        Args:
            steps: of the sampler, which FLUX.2's shift goes by, too; its usual 50 where not given.
        """
        ...


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving diffusion: z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise.

    Fields:
        scheduler: diffusers' DDPMScheduler on the pipeline's schedule.
    """

    scheduler: DDPMScheduler

    @property
    def steps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def predicts_velocity(self) -> bool:
        """Whether the model predicts v = sqrt(abar) noise - sqrt(1 - abar) z_0 rather than the noise."""
        return bool(self.scheduler.config.prediction_type == "v_prediction")

    @cached_property
    def _alphas(self) -> dict[torch.device, Tensor]:
        return {}

    def signal(self, timesteps: Tensor) -> Tensor:
        """abar_t: [n] float32; the schedule is moved to each device once."""
        device = timesteps.device
        if device not in self._alphas:
            self._alphas[device] = self.scheduler.alphas_cumprod.to(device)
        return self._alphas[device][timesteps]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal = self.signal(timesteps).to(latents.dtype).reshape(-1, *[1] * (latents.dim() - 1))
        return signal**0.5 * latents + (1 - signal) ** 0.5 * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if not self.predicts_velocity:
            return noise
        signal = self.signal(timesteps).reshape(-1, *[1] * (latents.dim() - 1))
        return signal.sqrt() * noise - (1 - signal).sqrt() * latents

    def latent_weight(self, timesteps: Tensor) -> Tensor:
        signal = self.signal(timesteps)
        return (1 - signal) if self.predicts_velocity else (1 - signal) / signal

    def time_steps(self, unit: Tensor) -> Tensor:
        """floor(steps x unit): each step has the probability of its own interval [t / steps, (t + 1) / steps)."""
        return (unit * self.steps).to(torch.int64).clamp_(max=self.steps - 1)

    def spread(self, count: int) -> Tensor:
        return torch.arange(count) * self.steps // count

    def uniform(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, self.steps, (count,), generator=generator)

    def at_size(self, latent_size: Sequence[int], steps: int | None = None) -> Process:
        return self


@dataclass(frozen=True)
class DynamicShift:
    """A shift that grows with the number of a picture's tokens, between two of them on a line (FLUX, SD 3.5).

    Fields:
        tokens: at which `ends` are reached.
        ends: mu at either.
        exponential: the shift is e^mu, else mu itself.
        patch: latents on a side of a token.
        empirical: tokens and the sampler's steps -> mu instead of the line.
    """

    tokens: tuple[int, int] = (256, 4096)
    ends: tuple[float, float] = (0.5, 1.15)
    exponential: bool = True
    patch: int = 1
    empirical: Callable[[int, int], float] | None = None

    def shift(self, latent_size: Sequence[int], steps: int | None = None) -> float:
        """For latents of this height and width, and a sampler of so many steps."""
        count = (latent_size[0] // self.patch) * (latent_size[1] // self.patch)
        if self.empirical is not None:
            mu = self.empirical(count, steps or _USUAL_STEPS)
        else:
            slope = (self.ends[1] - self.ends[0]) / (self.tokens[1] - self.tokens[0])
            mu = self.ends[0] + slope * (count - self.tokens[0])
        return math.exp(mu) if self.exponential else mu


@dataclass(frozen=True)
class Flow:
    """Flow matching: z_t = (1 - s) z_0 + s noise with t = steps x s, and the velocity noise - z_0 as the target.

    Fields:
        steps: num_train_timesteps.
        shift: of the times towards noise, s' = shift s / (1 + (shift - 1) s); 1 leaves them.
        dynamic: what the shift follows from instead, once `at_size` says how large the latents are.
    """

    steps: int = 1000
    shift: float = 1.0
    dynamic: DynamicShift | None = None

    def _level(self, timesteps: Tensor, like: Tensor) -> Tensor:
        return (timesteps.to(torch.float32) / self.steps).to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        level = self._level(timesteps, latents)
        return (1 - level) * latents + level * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def latent_weight(self, timesteps: Tensor) -> Tensor:
        """s^2: the predicted latents are z_t - s x velocity."""
        return (timesteps.to(torch.float32) / self.steps).square()

    def time_steps(self, unit: Tensor) -> Tensor:
        level = self.shift * unit / (1 + (self.shift - 1) * unit)
        return (level * self.steps).to(torch.float32)

    def spread(self, count: int) -> Tensor:
        """In the middles of equal parts, shifted: at t = 0 there is nothing to predict."""
        return self.time_steps((torch.arange(count) + 0.5) / count)

    def uniform(self, count: int, generator: torch.Generator) -> Tensor:
        return self.time_steps(torch.rand(count, generator=generator))

    def at_size(self, latent_size: Sequence[int], steps: int | None = None) -> Process:
        return self if self.dynamic is None else Flow(self.steps, self.dynamic.shift(latent_size, steps))


def is_flow(scheduler_config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is of flow matching."""
    name = str(scheduler_config.get("_class_name", ""))
    flags = any(scheduler_config.get(flag) for flag in _FLOW_FLAGS)
    return flags or name.startswith(_FLOW_CLASSES) or scheduler_config.get("prediction_type") == "flow_prediction"


def process_of(scheduler: SchedulerMixin, denoiser: nn.Module | None = None) -> Process:
    """The process of a pipeline's scheduler.

    Args:
        scheduler: as the pipeline has it; one that was never saved does not name its class in its config.
        denoiser: says how many latents are a token, where the shift goes by size.

    Raises:
        InputError: a prediction type that is neither epsilon, v_prediction nor a flow.
    """
    config: dict[str, Any] = {**scheduler.config, "_class_name": type(scheduler).__name__}
    if is_flow(config):
        steps = int(config.get("num_train_timesteps", 1000))
        if config.get("use_dynamic_shifting"):
            return Flow(steps, dynamic=_dynamic_shift(config, denoiser))
        return Flow(steps, float(config.get("shift", config.get("flow_shift")) or 1.0))
    noisy = DDPMScheduler.from_config(scheduler.config)
    kind = noisy.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(f"scheduler: got prediction_type {kind!r}, wanted epsilon, v_prediction or a flow")
    return NoiseSchedule(noisy)


def _dynamic_shift(config: Mapping[str, Any], denoiser: nn.Module | None) -> DynamicShift:
    """As the scheduler's config says; FLUX.2's pipelines have a fit of their own."""
    family = None if denoiser is None else denoiser_of(denoiser)
    empirical = None
    if family is not None and family.name == "Flux2Transformer2DModel":
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        empirical = compute_empirical_mu
    return DynamicShift(
        (int(config.get("base_image_seq_len") or 256), int(config.get("max_image_seq_len") or 4096)),
        (float(config.get("base_shift") or 0.5), float(config.get("max_shift") or 1.15)),
        config.get("time_shift_type", "exponential") == "exponential",
        1 if family is None else family.patch(getattr(denoiser, "config", {})),
        empirical,
    )
