"""A UNet of random weights: two blocks with shortcuts and time layers, cross-attention in the outer one."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel


def build_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """For 4x4 latents and text states of 16 values, with `changes` to its config; the seed's own weights."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "sample_size": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**config | changes).eval()


@torch.no_grad()
def build_smooth_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """The same with time features as a trained model's are: slow in time, for it learnt to pass over the fast waves."""
    made = build_unet(seed, **changes)
    weight = made.time_embedding.linear_1.weight  # over cosines, then sines, from the fastest wave to the slowest
    waves = weight.shape[1] // 2
    weight[:, (torch.arange(waves) < waves // 2).repeat(2)] = 0
    return made


def sdxl(pooled: int) -> dict[str, Any]:
    """The changes that make it one of SDXL's kind, with a pooled text embedding of `pooled` values."""
    return {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + pooled,
    }
