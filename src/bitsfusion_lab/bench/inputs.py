"""The fixed inputs that every method runs on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.architectures.registry import denoiser_called

TEXT_TOKENS = 77


@dataclass(frozen=True)
class ForwardInputs:
    """One batch for a denoiser: a Gaussian sample [batch, c, latent, latent], a time step, and conditioning."""

    sample: Tensor
    timestep: Tensor
    conditioning: Conditioning

    def sha256(self) -> str:
        """Over all values, in hex."""
        digest = hashlib.sha256()
        for tensor in (self.sample, self.timestep, *self.conditioning.tensors.values()):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def forward_inputs(config: Mapping[str, Any], *, step: int, batch: int, latent: int) -> ForwardInputs:
    """The same float32 inputs for the same arguments, on any machine.

    Args:
        config: of the denoiser.
        step: the time step.
        batch, latent: of the sample, `latent` being its height and width.

    Raises:
        InputError: a denoiser that asks for more than a text and, like SDXL, a pooled text and sizes.
    """
    generator = torch.Generator().manual_seed(0)
    sample, conditioning = denoiser_called(config).example(config, batch, latent, TEXT_TOKENS, generator)
    return ForwardInputs(sample, torch.full((batch,), step), conditioning)
