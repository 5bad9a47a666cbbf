"""A UNet, a text encoder and data small enough to train in a test; also run as a script by the kill tests."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bitsfusion.data.batches import Batch
from bitsfusion.models.unet import FIRST_LAST_BITS, layers_to_assign
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.training.config import TrainingConfig

TOKENS = 8
WORDS = ("red", "blue", "circle", "square")


def build_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()


def build_student(teacher: UNet2DConditionModel, bits: int = 2) -> UNet2DConditionModel:
    student = copy.deepcopy(teacher)
    wanted = dict.fromkeys(layers_to_assign(student), bits)
    fake_quantize_model(student, {**wanted, "conv_in": FIRST_LAST_BITS, "conv_out": FIRST_LAST_BITS})
    return student


def build_tokenizer() -> CLIPTokenizer:
    tokens = ["<|startoftext|>", "<|endoftext|>", *(f"{word}</w>" for word in WORDS), *"abcdefghijklmnopqrstuvwxyz"]
    letters = [f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocab = {token: index for index, token in enumerate(tokens + letters)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TOKENS)


def build_text_encoder() -> CLIPTextModel:
    torch.manual_seed(1)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=64, max_position_embeddings=TOKENS, bos_token_id=0, eos_token_id=1, **shape)
    ).eval()


def build_vae() -> AutoencoderKL:
    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=8, **blocks)


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
        return Batch(latents, ids, tuple(f"sample {step}.{index}" for index in range(size)))


def parts() -> dict[str, object]:
    """What `train` takes besides the UNets, the config and the folder."""
    return {
        "text_encoder": build_text_encoder(),
        "tokenizer": build_tokenizer(),
        "noise_scheduler": DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        "data": RandomData(),
    }


KILL_CONFIG = TrainingConfig(
    train_batch_size=4,
    learning_rate=1e-3,
    lr_scheduler="cosine",
    lr_warmup_steps=2,
    max_train_steps=9,
    checkpointing_steps=3,
    logging_steps=2,
    ema_decay=0.9,
)

if __name__ == "__main__":
    import json
    import os
    import signal
    import sys

    from bitsfusion.training import checkpoint
    from bitsfusion.training.loop import train

    out_dir, where = Path(sys.argv[1]), sys.argv[2]  # and, as JSON, what is changed in KILL_CONFIG
    config = TrainingConfig.model_validate(
        {**KILL_CONFIG.model_dump(exclude_defaults=True), **json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}")}
    )

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "saving":  # in the middle of the second checkpoint, whose weights are there and whose state is not
        save = checkpoint._save
        checkpoint._save = lambda tensors, path: (
            die() if "checkpoint-6" in str(path) and "ema" in path.name else save(tensors, path)
        )
    teacher = build_unet()

    def watch(step: int, total: int, metrics: dict[str, float]) -> None:
        if where == f"step {step}":
            die()

    result = train(build_student(teacher), teacher, config=config, out_dir=out_dir, progress=watch, **parts())
