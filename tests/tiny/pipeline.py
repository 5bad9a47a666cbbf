"""A whole Stable Diffusion pipeline of random weights."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from .text import build_text_encoder, build_tokenizer


def build_pipeline(unet: UNet2DConditionModel, vae: AutoencoderKL, kind: Any = StableDiffusionPipeline) -> Any:
    """Of class `kind`, with a text encoder of the width that `unet` takes; shows no progress."""
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
