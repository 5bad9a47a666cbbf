"""Noisy latents as the sampler asks about them: with their captions and with the empty one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitsfusion.data.batches import tokenize
from bitsfusion.sensitivity.noise import NoisyLatents


@dataclass(frozen=True)
class GuidedLatents:
    """Latents z_t [n, c, h, w] and what weighs their two predictions: uncond + guidance x (cond - uncond).

    At a guidance of 1 or less there is no unconditional prediction, as in diffusers.
    """

    inputs: NoisyLatents
    null: Tensor
    """Text states of the empty prompt, [1, tokens, d]."""
    guidance: float

    @property
    def forwards(self) -> int:
        """Latents that go through the UNet for one prediction of all."""
        return len(self.inputs.latents) * (2 if self.guidance > 1 else 1)

    def split(self, size: int) -> Iterator[GuidedLatents]:
        """Parts of at most `size` samples."""
        return (GuidedLatents(part, self.null, self.guidance) for part in self.inputs.split(size))

    def predict(self, unet: Any) -> Tensor:
        """The guided output, [n, c, h, w]; with gradients unless switched off outside."""
        if self.guidance <= 1:
            return self.inputs.predict(unet)
        both = self.both().predict(unet)
        return self.combine(both)

    def both(self) -> NoisyLatents:
        """The 2n questions of which `predict` combines the answers: the empty prompts' first."""
        if self.guidance <= 1:
            return self.inputs
        i = self.inputs
        context = torch.cat([self.null.expand(len(i.context), -1, -1), i.context])
        return NoisyLatents(torch.cat([i.latents, i.latents]), torch.cat([i.timesteps, i.timesteps]), context)

    def combine(self, answers: Tensor) -> Tensor:
        """[2n, c, h, w] -> [n, c, h, w]."""
        if self.guidance <= 1:
            return answers
        uncond, cond = answers.chunk(2)
        return uncond + self.guidance * (cond - uncond)


@torch.no_grad()
def guided_latents(pipeline: Any, inputs: NoisyLatents, guidance: float) -> GuidedLatents:
    """`inputs` with the pipeline's text states of the empty prompt."""
    ids = tokenize(pipeline.tokenizer, [""]).to(pipeline.text_encoder.device)
    null = pipeline.text_encoder(ids)[0]
    return GuidedLatents(inputs, null.to(inputs.context.device, inputs.context.dtype), guidance)
