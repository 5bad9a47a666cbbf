"""Shapes from a config alone are those of the class that the library builds, or none at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bitsfusion.architectures.registry import ARCHITECTURES
from bitsfusion.embedded import MODELS

UNET: dict[str, Any] = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
VAE: dict[str, Any] = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
KNOWN = {
    "unet, sd15": ("UNet2DConditionModel", {"cross_attention_dim": 768}),
    "unet, sd21": (
        "UNet2DConditionModel",
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    ),
    "unet, small": ("UNet2DConditionModel", UNET),
    "unet, deep": ("UNet2DConditionModel", UNET | {"layers_per_block": 1, "transformer_layers_per_block": 2}),
    "unet, three blocks": (
        "UNet2DConditionModel",
        UNET
        | {
            "block_out_channels": [16, 32, 64],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": [2, 4, 8],
        },
    ),
    "vae": ("AutoencoderKL", VAE),
    "vae, plain": ("AutoencoderKL", {}),
    "vae, bare": (
        "AutoencoderKL",
        VAE | {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
    ),
    "text": ("CLIPTextModel", TEXT),
    "text, plain": ("CLIPTextModel", {}),
    "text, projection": ("CLIPTextModelWithProjection", TEXT | {"projection_dim": 20}),
}
LEFT = {
    "unet, another block": ("UNet2DConditionModel", UNET | {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}),
    "unet, too few blocks": ("UNet2DConditionModel", UNET | {"down_block_types": ["DownBlock2D"]}),
    "unet, groups that do not divide": ("UNet2DConditionModel", UNET | {"norm_num_groups": 7}),
    "unet, heads that do not divide": ("UNet2DConditionModel", UNET | {"attention_head_dim": 7}),
    "unet, a switch that is a number": ("UNet2DConditionModel", UNET | {"use_linear_projection": 1}),
    "unet, a width that is a switch": ("UNet2DConditionModel", UNET | {"in_channels": True}),
    "unet, more layers than any": ("UNet2DConditionModel", UNET | {"layers_per_block": 1 << 20}),
    "unet, a key of its own": ("UNet2DConditionModel", UNET | {"depth": 3}),
    "unet, sizes": ("UNet2DConditionModel", UNET | {"addition_embed_type": "text_time"}),
    "vae, too few blocks": ("AutoencoderKL", VAE | {"up_block_types": ["UpDecoderBlock2D"]}),
    "vae, another activation": ("AutoencoderKL", VAE | {"act_fn": "mish"}),
    "text, heads that do not divide": ("CLIPTextModel", TEXT | {"num_attention_heads": 5}),
    "text, a text": ("CLIPTextModel", TEXT | {"hidden_size": "24"}),
    "transformer": ("FluxTransformer2DModel", {}),
}


def built(name: str, config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    state = ARCHITECTURES[name].build(config).state_dict()
    return [(key, tuple(tensor.shape)) for key, tensor in state.items()]


@pytest.mark.parametrize("case", KNOWN)
def test_the_class_builds_the_same(case: str) -> None:
    name, config = KNOWN[case]
    found = ARCHITECTURES[name].shapes(config)
    assert found is not None and list(found.items()) == built(name, config)


@pytest.mark.parametrize("model", ["embedded", "embedded:grid"])
@pytest.mark.parametrize(
    ("part", "name"), [("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL"), ("text_encoder", "CLIPTextModel")]
)
def test_of_the_embedded_models(model: str, part: str, name: str) -> None:
    config = json.loads((MODELS[model].pipeline / part / "config.json").read_text())
    found = ARCHITECTURES[name].shapes(config)
    assert found is not None and list(found.items()) == built(name, config)


@pytest.mark.parametrize("case", LEFT)
def test_what_is_not_known_is_left_to_the_class(case: str) -> None:
    name, config = LEFT[case]
    assert ARCHITECTURES[name].shapes(config) is None
