"""Trains the grid world's flow model, a small AuraFlow, by the product's own loop at full precision.

    python -m bitsfusion_lab.embedding.train_flow train  --work work/flow
    python -m bitsfusion_lab.embedding.train_flow export --work work/flow --out src/bitsfusion/embedded

Run again, training goes on from its last checkpoint. Text encoder, tokenizer and VAE are the grid pipeline's; only the
transformer is trained. AuraFlow has what the others have in parts: joint and single blocks, a text mask, flow with a
shift, true guidance, and modulation by the time step alone, a third of its weights.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitsfusion.data.batches import Batch
from bitsfusion.diffusion.conditioning import Conditioner, conditioner_of
from bitsfusion.embedded import GRID_PIPELINE_FOLDER
from bitsfusion.embedded.world import GRID_SIZE
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.training.checkpoint import STUDENT_INFO, checkpoints, load_student
from bitsfusion.training.config import TimeStepConfig, TrainingConfig
from bitsfusion.training.loop import train
from bitsfusion_lab.embedding.grid_world import TrainedGridWorld

SHIFT = 1.73
WIDTH, HEADS, HEAD_SIZE = 192, 4, 48
PIPELINE_NAME = "flow_pipeline"
STEPS = 13_000


def build_transformer(channels: int, text_width: int) -> AuraFlowTransformer2DModel:
    """Three joint and two single blocks; every modulation and the last layer begin at zero."""
    model = AuraFlowTransformer2DModel(
        sample_size=GRID_SIZE,
        patch_size=1,
        in_channels=channels,
        out_channels=channels,
        num_mmdit_layers=3,
        num_single_dit_layers=2,
        attention_head_dim=HEAD_SIZE,
        num_attention_heads=HEADS,
        joint_attention_dim=text_width,
        caption_projection_dim=WIDTH,
        pos_embed_max_size=GRID_SIZE**2,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".norm1" in name or name.startswith(("norm_out", "proj_out")):
                parameter.zero_()
    return model


def build_pipeline(transformer: AuraFlowTransformer2DModel | None = None) -> Any:
    """The grid pipeline's parts around a transformer, in float32; a fresh one where none is given."""
    grid = load_pipeline(str(GRID_PIPELINE_FOLDER))
    made = transformer or build_transformer(grid.vae.config.latent_channels, int(grid.text_encoder.config.hidden_size))
    return AuraFlowPipeline(
        tokenizer=grid.tokenizer,
        text_encoder=grid.text_encoder,
        vae=grid.vae,
        transformer=made,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )


class EndlessScenes:
    """Captioned scenes that never come twice by plan, as the codes that the VAE was taught; see `TrainingData`."""

    def __init__(self, world: TrainedGridWorld, conditioner: Conditioner, seed: int = 0) -> None:
        self._world, self._conditioner, self._seed = world, conditioner, seed

    @property
    def fingerprint(self) -> str:
        """The world and the seed."""
        return f"grid {self._seed}"

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        """`size` new scenes."""
        rngs = [random.Random(f"flow {self._seed} {step} {rank * size + place}") for place in range(size)]
        prompts = [self._world.training_prompt(rng) for rng in rngs]
        scenes = [self._world.sample_scene(prompt, rng) for prompt, rng in zip(prompts, rngs, strict=True)]
        texts = tuple(prompt.text for prompt in prompts)
        return Batch(self._world.encode(scenes), self._conditioner.rows(texts), texts)


def training_config(steps: int, seed: int) -> TrainingConfig:
    """Velocity matching at batch 64."""
    return TrainingConfig(
        stage=2,
        train_batch_size=64,
        max_train_steps=steps,
        learning_rate=1e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=200,
        adam_beta2=0.99,
        ema_decay=0.998,
        mixed_precision="bf16",
        timesteps=TimeStepConfig(kind="logit_normal", mean=0.3),
        seed=seed,
        logging_steps=50,
        checkpointing_steps=250,
        device="cpu",
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "export"))
    parser.add_argument("--work", type=Path, required=True, help="Keeps the training.")
    parser.add_argument("--out", type=Path, help="Gets the exported folder.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    pipeline = build_pipeline()
    if args.stage == "train":
        data = EndlessScenes(TrainedGridWorld(), conditioner_of(pipeline), args.seed)
        with sdpa_kernel(SDPBackend.MATH):  # the others' backward pass is slow in bfloat16 on a CPU
            train(pipeline.transformer, None, pipeline, data, training_config(args.steps, args.seed), args.work)
        return
    if args.out is None:
        parser.error("export: wanted --out, the folder that gets the model")
    found = args.work if (args.work / STUDENT_INFO).exists() else checkpoints(args.work)[-1]
    load_student(found, pipeline.transformer)
    out = args.out / PIPELINE_NAME
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    config = read_json(out / "vae" / "config.json")
    del config["_name_or_path"]  # the folder that it was loaded from
    write_json(out / "vae" / "config.json", config)
    print(f"pipeline {sum(file.stat().st_size for file in out.rglob('*') if file.is_file()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
