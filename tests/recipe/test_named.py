"""Published recipes by name: which UNets they go for."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.errors import InputError
from bitsfusion.recipe.named import recipe_bits
from bitsfusion.recipe.published import published_recipe, published_weights

SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


def layers_of(**config):
    with torch.device("meta"):
        return model_layers(UNet2DConditionModel(**config))


def test_the_weights_beside_the_published_bits():
    assert published_weights("sd15") == {name: layer.numel for name, layer in layers_of(**SD15).items()}


def test_the_base_and_its_fine_tunes():
    for changes in ({}, {"in_channels": 9}, {"in_channels": 8, "out_channels": 8}, {"time_cond_proj_dim": 256}):
        assert recipe_bits("sd15", layers_of(**SD15, **changes)) == published_recipe("sd15")


def test_the_same_names_in_other_sizes():
    with pytest.raises(InputError) as caught:
        recipe_bits("sd15", layers_of(**SD21))
    message = str(caught.value)
    assert message.startswith("recipe sd15: got another number of weights than the model has in: down_blocks.0.")
    assert "attn2.to_k" in message and message.endswith("and 27 more")


def test_other_blocks():
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    with pytest.raises(InputError, match=r"that the model does not have: down_blocks\.1\.downsamplers\.0\.conv, down"):
        recipe_bits("sd15", layers_of(**SD15, **blocks, block_out_channels=(320, 640)))


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_uniform_leaves_conditioning_alone(bits):
    layers = layers_of(
        **SD15, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64
    )
    given = recipe_bits(f"uniform:{bits}", layers)
    by_role = {layer.role: given.get(name) for name, layer in layers.items()}
    assert by_role == {
        LayerRole.QUANTIZED: bits,
        LayerRole.FIRST_LAST: 8,
        LayerRole.TIME: None,
        LayerRole.CONDITION: None,
    }
