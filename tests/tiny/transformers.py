"""Diffusion transformers of random weights, one of each class that is packed, and a pipeline around one."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    AuraFlowPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    FluxPipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    SanaPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from transformers import (
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from .text import build_text_encoder, build_tokenizer
from .vae import build_vae
from .weights import gaussian_

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


def build_transformer(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model of the class `name`, with `changes` to its config; every parameter Gaussian, also those made as zeros."""
    model = getattr(diffusers, name)(**CONFIGS[name] | changes).eval()
    gaussian_(model, seed)
    return model


def build_sd3_pipeline(**changes: Any) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 without its T5, which is optional: 16x16 images from 8x8 latents."""
    transformer: SD3Transformer2DModel = build_transformer("SD3Transformer2DModel", **changes)
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


def build_transformer_pipeline(name: str, **changes: Any) -> Any:
    """The pipeline of a class of CONFIGS, with `changes` to the transformer's config.

    Text encoders are of its own kinds but for Qwen-Image, which gets a Qwen3.
    """
    transformer = build_transformer(name, **changes)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    tokenizer = build_tokenizer(16)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    parts: dict[str, Any] = dict(
        transformer=transformer, scheduler=flow, vae=build_vae(shift_factor=0.1), tokenizer=tokenizer
    )
    torch.manual_seed(0)
    if name == "SD3Transformer2DModel":
        return build_sd3_pipeline(**changes)
    if name == "FluxTransformer2DModel":
        clip = build_text_encoder(16)
        parts |= {"text_encoder": clip, "tokenizer": build_tokenizer(), "tokenizer_2": tokenizer}
        made: Any = FluxPipeline(**parts, text_encoder_2=_t5(tokenizer))
    elif name == "Flux2Transformer2DModel":
        made = Flux2KleinPipeline(**parts | {"vae": _flux2_vae()}, text_encoder=_qwen(tokenizer, 8, 28))
    elif name == "PixArtTransformer2DModel":
        parts["scheduler"] = DPMSolverMultistepScheduler()
        made = PixArtSigmaPipeline(**parts, text_encoder=_t5(tokenizer))
    elif name == "SanaTransformer2DModel":
        sizes = dict(hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=12)
        gemma = Gemma2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)
        parts["scheduler"] = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        made = SanaPipeline(**parts | {"vae": _deep_vae()}, text_encoder=Gemma2Model(gemma).eval())
    elif name == "ZImageTransformer2DModel":
        made = ZImagePipeline(**parts, text_encoder=_qwen(tokenizer, 24, 2))
    elif name == "QwenImageTransformer2DModel":
        made = QwenImagePipeline(**parts | {"vae": _qwen_vae()}, text_encoder=_qwen(tokenizer, 24, 1))
    else:
        made = AuraFlowPipeline(**parts, text_encoder=_t5(tokenizer))
    made.set_progress_bar_config(disable=True)
    return made


def _t5(tokenizer: Any) -> Any:
    sizes = dict(d_model=24, d_kv=12, d_ff=24, num_layers=1, num_heads=2)
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).eval()


def _qwen(tokenizer: Any, width: int, layers: int) -> Any:
    sizes = dict(hidden_size=width, intermediate_size=width, num_hidden_layers=layers, head_dim=4)
    config = Qwen3Config(vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=2, **sizes)
    return Qwen3Model(config).eval()


def _flux2_vae() -> Any:
    types = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKLFlux2(
        latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16, **types
    ).eval()


def _deep_vae() -> Any:
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    ).eval()


def _qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1] * 4,
        latents_std=[0.5] * 4,
    ).eval()
