"""Original layouts: diffusers' own converters bring every tensor back, row for row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from torch import Tensor

from bitsfusion.architectures.original import ORIGINAL_CLASSES, Layout, original_layout
from bitsfusion.errors import InputError

from ..tiny.transformers import CONFIGS
from ..tiny.unet import build_unet, sdxl

# diffusers' converter of FLUX.1 knows only the published width.
CHANGES: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": dict(attention_head_dim=128, num_attention_heads=24, guidance_embeds=True),
    "Flux2Transformer2DModel": dict(guidance_embeds=True),
    "SD3Transformer2DModel": dict(dual_attention_layers=(0,), qk_norm="rms_norm"),
}
CONVERTERS: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    "FluxTransformer2DModel": converters.convert_flux_transformer_checkpoint_to_diffusers,
    "Flux2Transformer2DModel": converters.convert_flux2_transformer_checkpoint_to_diffusers,
    "SD3Transformer2DModel": converters.convert_sd3_transformer_checkpoint_to_diffusers,
    "AuraFlowTransformer2DModel": converters.convert_auraflow_transformer_checkpoint_to_diffusers,
    "ZImageTransformer2DModel": converters.convert_z_image_transformer_checkpoint_to_diffusers,
}


def labelled(model: Any) -> dict[str, Tensor]:
    """A column a tensor, whose rows are numbered through the whole model."""
    made, first = {}, 0
    for name, tensor in model.state_dict().items():
        rows = tensor.shape[0]
        made[name] = torch.arange(first, first + rows).view(rows, *([1] * (tensor.ndim - 1)))
        first += rows
    return made


def laid_out(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made = {}
    for name, source in layout.tensors.items():
        joined = torch.cat([tensors[part] for part in source.names])
        made[name] = joined.roll(len(joined) // 2, 0) if source.swapped else joined
    return made


def check(layout: Layout, tensors: dict[str, Tensor], back: Mapping[str, Tensor | None]) -> None:
    got = {name: tensor for name, tensor in back.items() if tensor is not None}
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(got[name], tensor), name
    assert len(set(layout.tensors)) == len(layout.tensors)


@pytest.mark.parametrize("name", CONVERTERS)
def test_transformers(name: str) -> None:
    with torch.device("meta"):
        model = getattr(diffusers, name)(**CONFIGS[name] | CHANGES.get(name, {}))
    tensors = labelled(model)
    layout = original_layout(name, model.config, tensors)
    check(layout, tensors, CONVERTERS[name](laid_out(layout, tensors)))


@pytest.mark.parametrize("changes", [{}, {"layers_per_block": 2, "block_out_channels": (16, 32)}, sdxl(16)])
def test_unets(changes: dict[str, Any]) -> None:
    model = build_unet(**changes)
    tensors = labelled(model)
    layout = original_layout("UNet2DConditionModel", model.config, tensors)
    assert layout.architecture == ("sdxl" if "addition_embed_type" in changes else "sd1")
    check(layout, tensors, converters.convert_ldm_unet_checkpoint(laid_out(layout, tensors), model.config))


def test_names_that_stay() -> None:
    model = "QwenImageTransformer2DModel"
    layout = original_layout(model, {}, ["transformer_blocks.0.attn.to_q.weight"])
    assert list(layout.tensors) == ["transformer_blocks.0.attn.to_q.weight"]


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"model: got a PixArtTransformer2DModel, wanted one of UNet2DConditionModel"):
        original_layout("PixArtTransformer2DModel", {}, [])
    with pytest.raises(InputError, match=r"odd\.weight: got a tensor that the original layout has no place for"):
        original_layout("FluxTransformer2DModel", {}, ["odd.weight"])
    assert "PixArtTransformer2DModel" not in ORIGINAL_CLASSES
