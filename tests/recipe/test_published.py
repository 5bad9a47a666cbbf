import runpy
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from bitsfusion.architectures.layers import FIRST_LAST_BITS, LayerRole
from bitsfusion.architectures.registry import layers_to_assign, model_layers
from bitsfusion.diffusion.time_features.layers import time_outputs_width
from bitsfusion.errors import InputError
from bitsfusion.packing.accounting import average_bits
from bitsfusion.recipe.named import recipe_bits
from bitsfusion.recipe.published import published_recipe, published_weights


@pytest.fixture(scope="module")
def sd15_unet():
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def test_the_published_recipe_averages_1_99_bits(sd15_unet):
    layers = model_layers(sd15_unet)
    weights = {name: layer.numel for name, layer in layers.items()}
    average = average_bits(weights, published_recipe("sd15"), feature_values=50 * time_outputs_width(sd15_unet))
    assert round(average, 5) == 1.98847


def test_the_published_recipe_names_every_layer_that_stays(sd15_unet):
    recipe = published_recipe("sd15")
    stays = [name for name, layer in model_layers(sd15_unet).items() if layer.role is not LayerRole.TIME]
    assert sorted(recipe) == sorted(stays)
    assert recipe["conv_in"] == recipe["conv_out"] == FIRST_LAST_BITS


def test_roles_in_sd15(sd15_unet):
    roles = [layer.role for layer in model_layers(sd15_unet).values()]
    assert len(layers_to_assign(sd15_unet)) == 256
    assert roles.count(LayerRole.TIME) == 24  # 22 projections and the two layers of the time embedding
    assert roles.count(LayerRole.FIRST_LAST) == 2
    assert time_outputs_width(sd15_unet) == 20160


def test_an_unknown_published_recipe():
    with pytest.raises(InputError, match="got 'sd99', wanted one of sd15"):
        published_recipe("sd99")


def test_every_kind_of_layer_has_a_name(sd15_unet):
    layers = model_layers(sd15_unet)
    kinds = {name: layers[name].kind for name in published_recipe("sd15")}
    assert kinds["conv_in"] == "first and last"
    assert kinds["down_blocks.1.resnets.0.conv_shortcut"] == "shortcut"
    assert kinds["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"] == "cross-attention"
    assert kinds["mid_block.attentions.0.proj_in"] == "projection"
    assert len(set(kinds.values())) == 8


SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def test_sdxls_base_recipe():
    """It fits SDXL's UNet, averages 1.99 bits with all embeddings at 8, and keeps what SD-v1.5's says of kinds."""
    with torch.device("meta"):
        layers = model_layers(UNet2DConditionModel(**SDXL))
    weights = {name: layer.numel for name, layer in layers.items()}
    recipe = recipe_bits("sdxl", layers)
    assert published_weights("sdxl") == weights
    given = {name for name, layer in layers.items() if layer.role in (LayerRole.QUANTIZED, LayerRole.FIRST_LAST)}
    assert recipe.keys() == given and recipe["conv_in"] == recipe["conv_out"] == FIRST_LAST_BITS
    average = average_bits(weights, dict.fromkeys(layers, 8) | recipe, 0)
    assert 1.989 < average <= 1.99
    mean = {leaf: sum(b for n, b in recipe.items() if leaf in n) for leaf in ("attn2.to_k", "ff.net.2", "proj_in")}
    count = {leaf: sum(leaf in n for n in recipe) for leaf in mean}
    assert mean["proj_in"] / count["proj_in"] > mean["attn2.to_k"] / count["attn2.to_k"] > 1.2
    assert mean["ff.net.2"] / count["ff.net.2"] < mean["attn2.to_k"] / count["attn2.to_k"]


def test_it_is_what_its_script_makes(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    script, shipped = root / "tools" / "carry_recipe.py", root / "src/bitsfusion/recipe/recipes/sdxl.json"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "sdxl.json")])
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / "sdxl.json").read_bytes() == shipped.read_bytes()
