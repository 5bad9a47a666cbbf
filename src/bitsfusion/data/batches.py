"""The batches that training reads. They follow from (seed, step, place in the step) alone, so runs resume exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bitsfusion.architectures.registry import latents_of

_PER_CALL = 32  # images through the VAE at once


@dataclass(frozen=True)
class Batch:
    """Images as the denoiser sees them, with their captions.

    Fields:
        latents: [n, c, h, w] float32, scaled as the VAE says.
        prompts: the captions' rows, [n, ...] each; see `Conditioner.rows`.
        names: n names for error messages (file names or captions).
        sizes: [n, 4] int64, height and width of the original images, and top and left of the crop; None where
            the images were made in their size.
        timesteps: [n], where the latents are z_t as the denoiser is given them and no images: at what time steps.
    """

    latents: Tensor
    prompts: Mapping[str, Tensor]
    names: tuple[str, ...] = ()
    sizes: Tensor | None = None
    timesteps: Tensor | None = None

    def rows(self, chosen: Sequence[int]) -> Batch:
        """Some of the samples, in the order asked for."""
        at = torch.tensor(chosen, dtype=torch.int64)
        names = tuple(self.names[index] for index in chosen) if self.names else ()
        prompts = {name: tensor[at] for name, tensor in self.prompts.items()}
        sizes, timesteps = (None if each is None else each[at] for each in (self.sizes, self.timesteps))
        return Batch(self.latents[at], prompts, names, sizes, timesteps)


def concatenate(parts: Sequence[Batch]) -> Batch:
    """The samples of all `parts`, which have the same prompt rows."""
    first = parts[0]
    prompts = {name: torch.cat([part.prompts[name] for part in parts]) for name in first.prompts}
    sizes = None if first.sizes is None else torch.cat([part.sizes for part in parts if part.sizes is not None])
    return Batch(torch.cat([p.latents for p in parts]), prompts, sum((p.names for p in parts), ()), sizes)


class TrainingData(Protocol):
    """A source of batches without hidden state: the same arguments always give the same batch."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data does; a run refuses to resume on other data."""
        ...

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        """The `size` samples that process `rank` of `world_size` trains on at optimizer step `step` (from 0).

        The batches of all processes side by side, in the order of ranks, are the batch of one process with
        `world_size` x `size` samples: a sample follows from its step and its place in the step's whole batch.
        """
        ...


@torch.no_grad()
def encode_images(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of images: the mean of the VAE's posterior, shifted and scaled as the denoiser expects it.

    Differs from diffusers' train_text_to_image.py, which samples the posterior: the mean can be computed
    once and kept.

    Args:
        vae: of a known class.
        pixels: [n, 3, height, width] float32 in [-1, 1], on any device.

    Returns:
        [n, c, h, w] float32 on the CPU.

    Raises:
        InputError: a class that is not known.
    """
    latents, parameter = latents_of(vae), next(vae.parameters())
    parts = [latents.encode(vae, part.to(parameter.device, parameter.dtype)) for part in pixels.split(_PER_CALL)]
    return torch.cat([part.cpu() for part in parts])
