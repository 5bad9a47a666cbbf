"""Transformers of random weights that have no family of their own, and a pipeline around one: Lumina 2."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline
from transformers import Gemma2Config, Gemma2Model

from .text import build_tokenizer
from .vae import build_vae
from .weights import gaussian_

CLASS = "Lumina2Transformer2DModel"
_FLUX = dict(
    in_channels=16,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    axes_dims_rope=(4, 4, 8),
)
GENERIC: dict[str, dict[str, Any]] = {
    CLASS: dict(
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
    ),
    "LongCatImageTransformer2DModel": _FLUX,
    "OvisImageTransformer2DModel": dict(_FLUX, out_channels=16),
}


def build_generic(name: str = CLASS) -> Any:
    """A model of a class of GENERIC, every parameter Gaussian."""
    model = getattr(diffusers, name)(**GENERIC[name]).eval()
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
