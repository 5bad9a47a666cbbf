"""A VAE of random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL


def build_vae(widths: tuple[int, ...] = (8, 16), seed: int = 0, **changes: Any) -> AutoencoderKL:
    """A block for each of `widths`, each but the last halving the image; latents of 4 channels."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "latent_channels": 4,
        "sample_size": 4 << len(widths) - 1,
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return AutoencoderKL(**config | changes).eval()
