"""The VAE: a small AutoencoderKL that learns a world's code of its cells and the way back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from bitsfusion.embedded.world import IMAGE_SIZE
from bitsfusion_lab.embedding.pixels import to_pixels
from bitsfusion_lab.embedding.state import TrainState
from bitsfusion_lab.embedding.world import TrainedWorld

WIDTHS = (8, 16, 32, 32, 64)


def build_vae(channels: int, image_size: int, widths: tuple[int, ...] = WIDTHS) -> AutoencoderKL:
    """Random weights; a latent's element covers 2 ** (len(widths) - 1) pixels a side."""
    return AutoencoderKL(
        sample_size=image_size,
        latent_channels=channels,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
    )


def train_vae(
    world: TrainedWorld,
    out: Path,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 32,
    lr: float = 2e-3,
    spread: float = 0.2,
    widths: tuple[int, ...] = WIDTHS,
) -> None:
    """The encoder learns the code, the decoder the way back from a code with noise of up to `spread`."""
    torch.manual_seed(seed)
    vae = build_vae(world.channels, IMAGE_SIZE, widths)
    state = TrainState({"vae": vae}, out, lr, steps, 0.995)
    while state.running:
        rng = random.Random(f"{seed} {state.step}")
        generator = torch.Generator().manual_seed(seed * 10_000_019 + state.step)
        scenes = [world.random_scene(rng) for _ in range(batch)]
        pixels = to_pixels(np.stack([world.draw(scene) for scene in scenes]))
        latents = world.encode(scenes)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.rand(len(latents), 1, 1, 1, generator=generator) * spread
        decoded = vae.decode(latents + noise * torch.randn(latents.shape, generator=generator)).sample
        encoding = functional.mse_loss(posterior.mean, latents)
        drawing = functional.mse_loss(decoded, pixels)
        state.update(encoding + drawing * 4 + 1e-3 * (posterior.logvar + 8).square().mean())
        state.log(50, encoding=encoding.item(), drawing=drawing.item())
    state.save()
