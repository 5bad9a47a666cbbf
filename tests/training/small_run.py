"""What a run of training takes, small enough for a test."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from bitsfusion.architectures.layers import FIRST_LAST_BITS
from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.data.batches import Batch
from bitsfusion.nn.replace import fake_quantize_model

from ..tiny.text import TOKENS, build_text_encoder, build_tokenizer


def build_student(teacher: UNet2DConditionModel, bits: int = 2) -> UNet2DConditionModel:
    student = copy.deepcopy(teacher)
    wanted = dict.fromkeys(layers_to_assign(student), bits)
    fake_quantize_model(student, {**wanted, "conv_in": FIRST_LAST_BITS, "conv_out": FIRST_LAST_BITS})
    return student


class RandomData:
    """Latents and token ids of the samples' places in the data; `broken` steps hold one NaN."""

    fingerprint = "random"

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        first = (step * world_size + rank) * size
        sources = [np.random.default_rng(place) for place in range(first, first + size)]
        latents = torch.from_numpy(np.stack([rng.standard_normal((4, 4, 4), dtype=np.float32) for rng in sources]))
        if step in self.broken:
            latents[1, 0, 0, 0] = torch.nan
        ids = torch.from_numpy(np.stack([rng.integers(2, 40, TOKENS) for rng in sources]))
        return Batch(latents, {"input_ids": ids}, tuple(f"sample {step}.{index}" for index in range(size)))


def run_parts(pipeline: object | None = None) -> dict[str, object]:
    """What `train` takes besides the UNets, the config and the folder."""
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    texts = SimpleNamespace(text_encoder=build_text_encoder(), tokenizer=build_tokenizer(), scheduler=schedule)
    return {"pipeline": pipeline or texts, "data": RandomData()}
