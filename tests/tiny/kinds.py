"""One tiny pipeline of random weights for each kind that people bring, for pictures of 8x8 or so.

for name, build in KINDS.items():
    build().save_pretrained(folder)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModelWithProjection

from .text import build_text_encoder, build_tokenizer
from .unet import build_unet, sdxl
from .vae import build_vae

SCHEDULE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def quiet(pipeline: Any) -> Any:
    """The same, without progress bars."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_sd(kind: Any = StableDiffusionPipeline, scheduler: Any = None, **changes: Any) -> Any:
    """SD 1's kind, of class `kind`, with `changes` to its UNet."""
    unet = build_unet(**changes)
    return quiet(
        kind(
            unet=unet,
            vae=build_vae(),
            text_encoder=build_text_encoder(unet.config.cross_attention_dim),
            tokenizer=build_tokenizer(),
            scheduler=scheduler or PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def build_sd2() -> Any:
    """SD 2's kind: v-prediction, linear projections."""
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    return build_sd(scheduler=scheduler, use_linear_projection=True)


def build_inpainting() -> Any:
    """Latents, a mask and the masked picture's latents: 9 channels in."""
    return build_sd(StableDiffusionInpaintPipeline, in_channels=9)


def build_instruct_pix2pix() -> Any:
    """Latents and the picture's latents: 8 channels in."""
    return build_sd(StableDiffusionInstructPix2PixPipeline, in_channels=8)


def build_upscaler() -> Any:
    """Latents and the small picture, with the noise on it as the class: 7 channels in."""
    unet = build_unet(in_channels=7, num_class_embeds=1000)
    return quiet(
        StableDiffusionUpscalePipeline(
            vae=build_vae(),
            text_encoder=build_text_encoder(unet.config.cross_attention_dim),
            tokenizer=build_tokenizer(),
            unet=unet,
            low_res_scheduler=DDPMScheduler(),
            scheduler=DDIMScheduler(prediction_type="v_prediction"),
        )
    )


def build_lcm() -> Any:
    """Distilled to few steps, with a guidance embedding."""
    return quiet(
        LatentConsistencyModelPipeline(
            unet=build_unet(time_cond_proj_dim=24),
            vae=build_vae(),
            text_encoder=build_text_encoder(),
            tokenizer=build_tokenizer(),
            scheduler=LCMScheduler(**SCHEDULE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def build_sdxl() -> Any:
    """Two text encoders, pooled text, sizes and crops."""
    return quiet(
        StableDiffusionXLPipeline(
            vae=build_vae(),
            text_encoder=build_text_encoder(32, num_hidden_layers=2),
            text_encoder_2=build_text_encoder(16, CLIPTextModelWithProjection, num_hidden_layers=2, projection_dim=16),
            tokenizer=build_tokenizer(),
            tokenizer_2=build_tokenizer(),
            unet=build_unet(cross_attention_dim=32 + 16, **sdxl(pooled=16)),
            scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1),
            add_watermarker=False,
        )
    )


def build_refiner() -> Any:
    """SDXL's second model: one text encoder, an aesthetic score in the place of the target size."""
    text = build_text_encoder(16, CLIPTextModelWithProjection, num_hidden_layers=2, projection_dim=16)
    changes = sdxl(pooled=16) | {"projection_class_embeddings_input_dim": 5 * 8 + 16}
    return quiet(
        StableDiffusionXLImg2ImgPipeline(
            vae=build_vae(),
            text_encoder=None,
            text_encoder_2=text,
            tokenizer=None,
            tokenizer_2=build_tokenizer(),
            unet=build_unet(cross_attention_dim=16, **changes),
            scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1),
            requires_aesthetics_score=True,
            add_watermarker=False,
        )
    )


KINDS: Mapping[str, Callable[[], Any]] = {
    "sd1": build_sd,
    "sd2": build_sd2,
    "sdxl": build_sdxl,
    "refiner": build_refiner,
    "inpainting": build_inpainting,
    "instruct-pix2pix": build_instruct_pix2pix,
    "upscaler": build_upscaler,
    "lcm": build_lcm,
}
"""Name -> what builds the pipeline."""

TEXT_TO_IMAGE = ("sd1", "sd2", "sdxl", "lcm")
"""The kinds that draw from a prompt alone."""
