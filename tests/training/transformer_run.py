"""Two steps of Stage I on tiny transformers, in one process or several: python -m ... OUT shard|whole NAME..."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule

from bitsfusion.architectures.registry import denoiser_of, layers_to_assign
from bitsfusion.data.batches import Batch
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.training.config import TimeStepConfig, TrainingConfig
from bitsfusion.training.loop import train

from ..tiny.transformers import build_transformer_pipeline
from .test_transformers import CAPTIONS, Captioned


class Shared(Captioned):
    """The same by the place in the step's whole batch, whichever process asks."""

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        places = [rank * size + index for index in range(size)]
        seeds = [torch.Generator().manual_seed(1000 * step + place) for place in places]
        latents = torch.stack([torch.randn(self.shape, generator=seed) for seed in seeds])
        chosen = [(step + place) % len(CAPTIONS) for place in places]
        rows = {name: tensor[chosen] for name, tensor in self.rows.items()}
        return Batch(latents, rows, tuple(CAPTIONS[index] for index in chosen))


def main() -> None:
    out, kind, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for name in names:
        pipeline = build_transformer_pipeline(name)
        student = copy.deepcopy(pipeline.transformer)
        fake_quantize_model(student, dict.fromkeys(layers_to_assign(student), 4))
        config = TrainingConfig(
            train_batch_size=2,
            total_batch_size=4,
            max_train_steps=2,
            learning_rate=1e-5,
            logging_steps=1,
            text_dropout=0.5,
            gradient_checkpointing=kind == "shard",
            shard=kind == "shard",
            ema_decay=0.9,
            timesteps=TimeStepConfig(kind="uniform"),
            device="cpu",
        )
        train(student, pipeline.transformer, pipeline, Shared(pipeline, name), config, out / name)
        if kind == "shard":
            units = denoiser_of(student).units(student)
            assert units and all(isinstance(unit, FSDPModule) for unit in units), name


if __name__ == "__main__":
    main()
