"""Averaged weights as the folders that the package brings: a StableDiffusionPipeline and a CLIP, in FP16."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from bitsfusion_lab.embedding.unet import NOISE_SCHEDULE


def export_pipeline(
    out: Path,
    *,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
) -> float:
    """Writes the pipeline with Stable Diffusion's own scheduler; returns its size in MB."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    return _megabytes(out)


def export_scorer(model: Path, out: Path, image_size: int) -> float:
    """Writes the trained CLIP of the folder `model` with its tokenizer and processor; returns its size in MB."""
    CLIPModel.from_pretrained(model).half().save_pretrained(out)
    CLIPTokenizer.from_pretrained(model).save_pretrained(out)
    side = dict(height=image_size, width=image_size)
    CLIPImageProcessor(
        size=side, crop_size=side, do_center_crop=False, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(out)
    return _megabytes(out)


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
