"""Teaches a text encoder what a caption says, by questions about it, before and beside its real task."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch.nn import functional
from transformers import CLIPTokenizer

from bitsfusion_lab.embedding.state import TrainState
from bitsfusion_lab.embedding.tokenizer import tokenize
from bitsfusion_lab.embedding.world import TrainedWorld

WEIGHT = 0.1
"""Weight of the head's loss beside the real one."""


class StructureHead(torch.nn.Module):
    """Asks what a caption says through one linear layer that is thrown away after training.

    Neither contrast nor the noise loss teaches a text encoder which of two shapes comes first in "a cross left of a
    square". Asked directly, it is right after some hundred steps, and the UNet has something to attend to.

    Args:
        width: of the pooled text.
        sizes: how many answers each question has.
    """

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self._sizes = sizes
        self.linear = torch.nn.Linear(width, sum(sizes))

    def loss(self, pooled: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the answers ([n, questions] int64) given pooled texts ([n, width])."""
        guesses = self.linear(pooled).split(self._sizes, dim=1)
        losses = [functional.cross_entropy(guess, answers[:, q]) for q, guess in enumerate(guesses)]
        return torch.stack(losses).mean()


def read_captions(
    world: TrainedWorld,
    tokenizer: CLIPTokenizer,
    text_encoder: torch.nn.Module,
    head: StructureHead,
    out: Path,
    *,
    steps: int,
    seed: int,
    batch: int = 128,
) -> None:
    """Trains text encoder and head on the questions alone, in place; resumes from `out`."""
    state = TrainState({"text_encoder": text_encoder, "head": head}, out, 1e-3, steps, 0.99)
    while state.running:
        rng = random.Random(f"reading {seed} {state.step}")
        prompts = [world.training_prompt(rng) for _ in range(batch)]
        pooled = text_encoder(tokenize(tokenizer, [prompt.text for prompt in prompts])).pooler_output
        loss = head.loss(pooled, torch.tensor([world.structure(prompt) for prompt in prompts]))
        state.update(loss)
        state.log(100, reading=loss.item())
