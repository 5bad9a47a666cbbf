"""A whole Stable Diffusion pipeline of random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from .text import build_text_encoder, build_tokenizer
from .unet import build_unet
from .vae import build_vae


def build_pipeline(unet: UNet2DConditionModel, vae: AutoencoderKL, kind: Any = StableDiffusionPipeline) -> Any:
    """A pipeline of class `kind`, with a text encoder of the width that `unet` takes; shows no progress."""
    schedule: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    made = kind(
        unet=unet,
        vae=vae,
        text_encoder=build_text_encoder(unet.config.cross_attention_dim),
        tokenizer=build_tokenizer(),
        scheduler=PNDMScheduler(**schedule, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def build_one_block_pipeline() -> StableDiffusionPipeline:
    """The quickest: 16x16 images from 4x4 latents by a UNet of one block each way and no middle."""
    unet = build_unet(
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
    )
    vae = build_vae((8, 8, 8), scaling_factor=1.0)
    with torch.no_grad():  # random decoders are nearly flat grey: stretch what the latents make
        vae.decoder.conv_out.weight.mul_(8)
    return build_pipeline(unet, vae)
