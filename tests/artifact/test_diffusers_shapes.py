"""Every kind of UNet2DConditionModel goes the whole way: fake-quantized, packed, loaded, equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

import bitsfusion  # noqa: F401  registers with diffusers
from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.artifact.writer import write_model
from bitsfusion.diffusion.samplers import Coverage
from bitsfusion.diffusion.time_features import cache_time_features
from bitsfusion.errors import InputError
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit

from ..tiny.unet import build_unet, sdxl

STEPS = Coverage((981, 500, 1))
TEXT = {"text_embeds": torch.ones(2, 24), "time_ids": torch.arange(12.0).view(2, 6)}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd 2.x": ({"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True}, {}),
    "inpainting": ({"in_channels": 9}, {}),
    "lcm": ({"time_cond_proj_dim": 16}, {"timestep_cond": torch.linspace(-1, 1, 32).view(2, 16)}),
    "sdxl": (sdxl(pooled=24), {"added_cond_kwargs": TEXT}),
}


def build(options: dict[str, Any]) -> UNet2DConditionModel:
    return build_unet(**options).requires_grad_(False)


def quantized(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Every layer of `unet`, the time layers too: 8 bits for those, all of b = 1..8 in turn for the others."""
    bits = {name: 8 if "time_emb" in name else 1 + index % 8 for index, name in enumerate(model_layers(unet))}
    fake_quantize_model(unet, bits, ScaleInit.MINMAX)
    return unet.eval()


def run(unet: UNet2DConditionModel, extra: dict[str, Any], step: int = 981) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, unet.config.in_channels, 4, 4, generator=generator)
    states = torch.randn(2, 5, 16, generator=generator)
    return unet(latents, torch.tensor(step), states, **extra).sample


@pytest.mark.parametrize("kind", KINDS)
def test_with_time_layers(kind: str, tmp_path: Path) -> None:
    options, extra = KINDS[kind]
    unet = quantized(build(options))
    config = write_model(unet, tmp_path / "unet", None)
    assert set(config.bits) == set(model_layers(unet)) and set(config.bits.values()) == set(range(1, 9))
    verify_folder(tmp_path / "unet")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    for step in (981, 321):
        assert torch.equal(run(loaded, extra, step), run(unet, extra, step))
    loaded.save_pretrained(tmp_path / "again")
    verify_folder(tmp_path / "again")


@pytest.mark.parametrize("kind", ["sd 2.x", "inpainting"])
def test_with_cached_rows(kind: str, tmp_path: Path) -> None:
    options, extra = KINDS[kind]
    unet = quantized(build(options))
    write_model(unet, tmp_path / "unet", STEPS)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    cache_time_features(unet, STEPS)
    for step in STEPS.steps:
        assert torch.equal(run(loaded, extra, step), run(unet, extra, step))


@pytest.mark.parametrize(("kind", "key"), [("lcm", "time_cond_proj_dim"), ("sdxl", "addition_embed_type")])
def test_rows_cannot_stand_for_what_depends_on_more(kind: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"got a UNet with {key}.*keep the time layers at 8 bits"):
        write_model(quantized(build(KINDS[kind][0])), tmp_path / "unet", STEPS)


@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_is_a_plain_unet(kind: str, tmp_path: Path) -> None:
    options, extra = KINDS[kind]
    unet = quantized(build(options))
    write_model(unet, tmp_path / "unet", None)
    UNet2DConditionModel.from_pretrained(tmp_path / "unet").dequantize().save_pretrained(tmp_path / "dense")
    dense = UNet2DConditionModel.from_pretrained(tmp_path / "dense")
    assert dense.state_dict().keys() == build(options).state_dict().keys()
    assert torch.equal(run(dense, extra), run(unet, extra))
