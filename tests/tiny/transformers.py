"""Diffusion transformers of random weights, one of each class that is packed, and a pipeline around one."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from .text import build_text_encoder, build_tokenizer
from .vae import build_vae

_FLUX = dict(num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24)
_SD3 = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=32,
    caption_projection_dim=16,
    pooled_projection_dim=32,
    pos_embed_max_size=8,
)
CONFIGS: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": dict(_FLUX, in_channels=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8)),
    "Flux2Transformer2DModel": dict(_FLUX, in_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False),
    "SD3Transformer2DModel": _SD3,
    "PixArtTransformer2DModel": dict(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=8,
        use_additional_conditions=False,
    ),
    "SanaTransformer2DModel": dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=8,
    ),
    "ZImageTransformer2DModel": dict(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 32, 32],
    ),
    "QwenImageTransformer2DModel": dict(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 8),
    ),
    "AuraFlowTransformer2DModel": dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    ),
}


def build_transformer(name: str, seed: int = 0) -> Any:
    """A model of the class `name`; every parameter is Gaussian, those too that a fresh model has at zero."""
    model = getattr(diffusers, name)(**CONFIGS[name]).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            width = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
    return model


def build_sd3_pipeline() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 without its T5, which is optional: 16x16 images from 8x8 latents."""
    transformer: SD3Transformer2DModel = build_transformer("SD3Transformer2DModel")
    encoders = [build_text_encoder(16, CLIPTextModelWithProjection, seed, projection_dim=16) for seed in (1, 2)]
    made = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_vae(shift_factor=0.1),
        text_encoder=encoders[0],
        tokenizer=build_tokenizer(),
        text_encoder_2=encoders[1],
        tokenizer_2=build_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    made.set_progress_bar_config(disable=True)
    return made
