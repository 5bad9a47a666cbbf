"""Text encoders and autoencoders of diffusion transformers, of random weights, one of each class that is packed."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

_WORDS = 40
_SMALL = dict(vocab_size=_WORDS, num_hidden_layers=2, hidden_size=16, intermediate_size=32, num_attention_heads=2)
_TOKENS = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
_T5 = dict(vocab_size=_WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
_GROUPED = dict(_SMALL, num_key_value_heads=1)

ENCODERS: dict[str, dict[str, Any]] = {
    "T5EncoderModel": dict(_T5, feed_forward_proj="gated-gelu"),
    "UMT5EncoderModel": _T5,
    "Gemma2Model": dict(_GROUPED, **_TOKENS, head_dim=8),
    "Qwen3Model": dict(_GROUPED, **_TOKENS, head_dim=8),
    "Qwen3ForCausalLM": dict(_GROUPED, **_TOKENS, head_dim=8, tie_word_embeddings=True),
    "Qwen2_5_VLForConditionalGeneration": dict(
        text_config=dict(_GROUPED, **_TOKENS, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]}),
        vision_config=dict(
            depth=1, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=16, fullatt_block_indexes=[0]
        ),
    ),
}
_KL = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=16,
)
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": dict(_KL, use_quant_conv=False, use_post_quant_conv=False),
    "AutoencoderKLFlux2": _KL,
    "AutoencoderKLQwenImage": dict(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1] * 4,
        latents_std=[0.5] * 4,
    ),
    "AutoencoderDC": dict(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
    ),
}


def build_encoder(name: str, seed: int = 0) -> Any:
    """A text encoder of a class of transformers, for ids below 40."""
    torch.manual_seed(seed)
    kind = getattr(transformers, name)
    return kind(kind.config_class.from_dict(ENCODERS[name])).eval()


def build_autoencoder(name: str, seed: int = 0) -> Any:
    """An autoencoder of a class of diffusers."""
    torch.manual_seed(seed)
    return getattr(diffusers, name)(**AUTOENCODERS[name]).eval()
