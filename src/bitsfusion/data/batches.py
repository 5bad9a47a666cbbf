"""What training reads: latents and captions, chosen by (seed, step, place in the step) alone: runs resume exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_PER_CALL = 32  # images through the VAE at once


@dataclass(frozen=True)
class Batch:
    """Images as the UNet sees them, with their captions.

    latents: [n, c, h, w] float32, scaled by the VAE's scaling factor. input_ids: [n, tokens] int64.
    names: n names for error messages (file names or captions).
    """

    latents: Tensor
    input_ids: Tensor
    names: tuple[str, ...] = ()


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


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token ids of `captions`, padded or cut to the tokenizer's length: [n, tokens] int64."""
    encoded = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = encoded.input_ids
    return ids


@torch.no_grad()
def encode_images(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of images: the mean of the VAE's posterior, shifted and scaled as the UNet expects it.

    Differs from diffusers' train_text_to_image.py, which samples the posterior: the mean can be computed
    once and kept.

    Args:
        vae: an AutoencoderKL.
        pixels: [n, 3, height, width] float32 in [-1, 1], on any device.

    Returns:
        [n, c, h, w] float32 on the CPU.
    """
    parameter = next(vae.parameters())
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    parts = [
        vae.encode(part.to(parameter.device, parameter.dtype)).latent_dist.mode().float().cpu()
        for part in pixels.split(_PER_CALL)
    ]
    latents: Tensor = (torch.cat(parts) - shift) * vae.config.scaling_factor
    return latents
