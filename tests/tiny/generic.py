"""A pipeline around a transformer that has no family of its own: Lumina 2, of random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from transformers import Gemma2Config, Gemma2Model

from .text import build_tokenizer
from .vae import build_vae
from .weights import gaussian_

CLASS = "Lumina2Transformer2DModel"
CONFIG: dict[str, Any] = dict(
    sample_size=8,
    in_channels=4,
    hidden_size=24,
    num_layers=2,
    num_refiner_layers=1,
    num_attention_heads=2,
    num_kv_heads=1,
    multiple_of=8,
    axes_dim_rope=(4, 4, 4),
    axes_lens=(300, 32, 32),
    cap_feat_dim=24,
)


def build_generic() -> Lumina2Transformer2DModel:
    """Every parameter Gaussian."""
    model = Lumina2Transformer2DModel(**CONFIG).eval()
    gaussian_(model)
    return model


def build_generic_pipeline() -> Lumina2Pipeline:
    """16x16 images from 8x8 latents."""
    tokenizer = build_tokenizer(16)
    sizes = dict(hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=12)
    torch.manual_seed(0)
    made = Lumina2Pipeline(
        transformer=build_generic(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_vae(shift_factor=0.1),
        text_encoder=Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)).eval(),
        tokenizer=tokenizer,
    )
    made.set_progress_bar_config(disable=True)
    return made
