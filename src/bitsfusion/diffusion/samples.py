"""Noisy latents with their conditioning: what a denoiser is asked about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.diffusion.denoise import denoise


def seeded_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Standard normal [n, *shape], float32 on the CPU: each from its own seed, whatever the device and batch."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds])


@dataclass(frozen=True)
class NoisySamples:
    """Latents z_t [n, c, h, w], time steps t [n], and conditioning of n rows, all on one device."""

    noisy: Tensor
    timesteps: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.noisy)

    def split(self, size: int) -> Iterator[NoisySamples]:
        """Parts of at most `size` samples."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield NoisySamples(self.noisy[rows], self.timesteps[rows], self.conditioning.rows(rows))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> NoisySamples:
        """On a device; floating tensors in `dtype` where one is given, time steps as they are."""
        return NoisySamples(
            self.noisy.to(device, dtype), self.timesteps.to(device), self.conditioning.to(device, dtype)
        )

    def predict(self, model: nn.Module) -> Tensor:
        """The model's output, [n, c, h, w]; with gradients unless switched off outside."""
        return denoise(model, self.noisy, self.timesteps, self.conditioning)


@dataclass(frozen=True)
class GuidedSamples:
    """Noisy samples as a sampler asks about them: uncond + guidance x (cond - uncond).

    Fields:
        samples: with their captions.
        null: the empty prompt's conditioning, n rows.
        guidance: at 1 or less there is no unconditional prediction, as in diffusers.
    """

    samples: NoisySamples
    null: Conditioning
    guidance: float

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def forwards(self) -> int:
        """Latents that go through the denoiser for one prediction of all."""
        return len(self) * (2 if self.guidance > 1 else 1)

    def split(self, size: int) -> Iterator[GuidedSamples]:
        """Parts of at most `size` samples."""
        for start, part in zip(range(0, len(self), size), self.samples.split(size), strict=True):
            yield GuidedSamples(part, self.null.rows(slice(start, start + size)), self.guidance)

    def predict(self, model: nn.Module) -> Tensor:
        """The guided output, [n, c, h, w]; with gradients unless switched off outside."""
        return self.combine(self.both().predict(model))

    def both(self) -> NoisySamples:
        """The 2n questions of which `predict` combines the answers: the empty prompts' first."""
        if self.guidance <= 1:
            return self.samples
        own = self.samples
        return NoisySamples(
            torch.cat([own.noisy, own.noisy]),
            torch.cat([own.timesteps, own.timesteps]),
            Conditioning.cat([self.null, own.conditioning]),
        )

    def combine(self, answers: Tensor) -> Tensor:
        """[2n, c, h, w] -> [n, c, h, w]."""
        if self.guidance <= 1:
            return answers
        uncond, cond = answers.chunk(2)
        return uncond + self.guidance * (cond - uncond)
