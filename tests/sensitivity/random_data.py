from __future__ import annotations

import numpy as np
import torch

from bitsfusion.data.batches import Batch
from bitsfusion.diffusion.conditioning.tokens import tokenize

from ..tiny.text import PROMPTS, build_tokenizer


class RandomData:
    """Latents and captions drawn by step alone."""

    def __init__(self, fingerprint: str = "random") -> None:
        self.fingerprint = fingerprint
        self.tokenizer = build_tokenizer()

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        rng = np.random.default_rng([rank, step])
        latents = torch.from_numpy(rng.standard_normal((size, 4, 4, 4), dtype=np.float32))
        captions = [str(rng.choice(PROMPTS)) for _ in range(size)]
        return Batch(latents, {"input_ids": tokenize(self.tokenizer, captions)}, tuple(captions))
