"""A CLIP model of random weights that scores 16x16 images."""

from __future__ import annotations

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from bitsfusion.metrics.clip_score import ClipScorer

from .text import build_tokenizer, text_config


def build_scorer(batch_size: int = 64) -> ClipScorer:
    torch.manual_seed(7)
    text = text_config()
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {key: text[key] for key in shared} | {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessorPil(size=size, crop_size=size, do_resize=True)
    return ClipScorer(CLIPModel(config), build_tokenizer(), processor, batch_size)
