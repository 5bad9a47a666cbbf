"""Diffusion transformers through `init`: packed, loaded by diffusers, equal to the fake-quantized ones bit for bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import bitsfusion  # noqa: F401  registers the format
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import denoiser_of, model_layers
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.nn.packed import PACKED_LAYERS
from bitsfusion.nn.replace import fake_quantize_model, fake_quantized_layers
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.recipe.named import recipe_bits
from bitsfusion.report.data import layer_rows
from bitsfusion.runs.packing import init_pipeline

from ..tiny.transformers import CONFIGS, build_sd3_pipeline, build_transformer

MODULATION = ("double_stream_modulation", "single_stream_modulation")
COMMON = ("transformer_blocks", "single_transformer_blocks", "layers", "joint_transformer_blocks")

KINDS = {
    "FluxTransformer2DModel": {
        "embedding": "x_embedder context_embedder time_text_embed.text_embedder.linear_1",
        "modulation": "transformer_blocks.0.norm1_context.linear single_transformer_blocks.0.norm.linear",
        "attention": "transformer_blocks.0.attn.add_q_proj single_transformer_blocks.0.attn.to_q",
        "feed-forward": "transformer_blocks.0.ff_context.net.2 single_transformer_blocks.0.proj_mlp",
        "attention and feed-forward": "single_transformer_blocks.0.proj_out",
        "output": "proj_out",
    },
    "Flux2Transformer2DModel": {
        "embedding": "time_guidance_embed.timestep_embedder.linear_2 x_embedder",
        "modulation": "double_stream_modulation_txt.linear single_stream_modulation.linear norm_out.linear",
        "attention": "transformer_blocks.0.attn.to_out.0 transformer_blocks.0.attn.to_add_out",
        "feed-forward": "transformer_blocks.0.ff.linear_in transformer_blocks.0.ff_context.linear_out",
        "attention and feed-forward": "single_transformer_blocks.0.attn.to_qkv_mlp_proj "
        "single_transformer_blocks.0.attn.to_out",
        "output": "proj_out",
    },
    "SD3Transformer2DModel": {
        "embedding": "pos_embed.proj context_embedder time_text_embed.timestep_embedder.linear_1",
        "modulation": "transformer_blocks.0.norm1.linear norm_out.linear",
        "attention": "transformer_blocks.0.attn.to_q transformer_blocks.0.attn.add_v_proj",
        "feed-forward": "transformer_blocks.0.ff.net.0.proj transformer_blocks.0.ff.net.2",
        "output": "proj_out",
    },
    "PixArtTransformer2DModel": {
        "embedding": "pos_embed.proj caption_projection.linear_1 adaln_single.emb.timestep_embedder.linear_1",
        "modulation": "adaln_single.linear",
        "attention": "transformer_blocks.0.attn1.to_k",
        "cross-attention": "transformer_blocks.0.attn2.to_k",
        "feed-forward": "transformer_blocks.0.ff.net.0.proj",
        "output": "proj_out",
    },
    "SanaTransformer2DModel": {
        "embedding": "patch_embed.proj time_embed.emb.timestep_embedder.linear_2 caption_projection.linear_2",
        "modulation": "time_embed.linear",
        "attention": "transformer_blocks.0.attn1.to_out.0",
        "cross-attention": "transformer_blocks.0.attn2.to_out.0",
        "feed-forward": "transformer_blocks.0.ff.conv_depth",
        "output": "proj_out",
    },
    "ZImageTransformer2DModel": {
        "embedding": "all_x_embedder.2-1 t_embedder.mlp.0 cap_embedder.1",
        "modulation": "layers.0.adaLN_modulation.0 all_final_layer.2-1.adaLN_modulation.1",
        "attention": "context_refiner.0.attention.to_q layers.0.attention.to_out.0",
        "feed-forward": "noise_refiner.0.feed_forward.w1 layers.0.feed_forward.w3",
        "output": "all_final_layer.2-1.linear",
    },
    "QwenImageTransformer2DModel": {
        "embedding": "img_in txt_in time_text_embed.timestep_embedder.linear_1",
        "modulation": "transformer_blocks.0.img_mod.1 transformer_blocks.0.txt_mod.1 norm_out.linear",
        "attention": "transformer_blocks.0.attn.add_k_proj",
        "feed-forward": "transformer_blocks.0.img_mlp.net.0.proj transformer_blocks.0.txt_mlp.net.2",
        "output": "proj_out",
    },
    "AuraFlowTransformer2DModel": {
        "embedding": "pos_embed.proj context_embedder time_step_proj.linear_1",
        "modulation": "joint_transformer_blocks.0.norm1_context.linear single_transformer_blocks.0.norm1.linear",
        "attention": "joint_transformer_blocks.0.attn.to_add_out single_transformer_blocks.0.attn.to_out.0",
        "feed-forward": "joint_transformer_blocks.0.ff.linear_1 single_transformer_blocks.0.ff.out_projection",
        "output": "proj_out",
    },
}
"""What layers of each class are there for: all its kinds, and a layer or more of each."""


@pytest.fixture(scope="module", params=CONFIGS)
def packed(request, tmp_path_factory):
    """A transformer, and the folder that `init` makes of its own, at mixed bits."""
    model = build_transformer(request.param)
    source = tmp_path_factory.mktemp(request.param) / "transformer"
    model.save_pretrained(source)
    out = source.parent / "packed"
    init_pipeline(str(source), out, recipe="uniform:2")
    return model, out


def test_every_weight_of_the_blocks_is_chosen_and_the_ends_are_fixed(packed):
    model, _ = packed
    layers = model_layers(model)
    for name, layer in layers.items():
        inside = name.startswith((*COMMON, "noise_refiner", "context_refiner", *MODULATION))
        assert (layer.role is LayerRole.QUANTIZED) == inside, name
    family = denoiser_of(model)
    assert len(family.units(model)) == len(family.stages(model)) >= 2


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_have_kinds_of_transformers(name):
    model = build_transformer(name)
    layers = model_layers(model)
    named = {layer: kind for kind, names in KINDS[name].items() for layer in names.split()}
    assert {layer: layers[layer].kind for layer in named} == named
    assert {layer.kind for layer in layers.values()} == set(KINDS[name])
    inside = [path for path, part in model.named_modules() if "Attention" in type(part).__name__]
    for layer, info in layers.items():
        assert ("attention" in info.kind) == layer.startswith(tuple(inside)) or "proj_out" in layer, layer


def test_unpacked_weights_are_the_fake_quantized_ones(packed):
    model, out = packed
    loaded = type(model).from_pretrained(out)
    student = copy.deepcopy(model)
    fake_quantize_model(student, recipe_bits("uniform:2", model_layers(student)), ScaleInit.EXACT)
    wanted = fake_quantized_layers(student)
    found = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, PACKED_LAYERS)}
    assert found.keys() == wanted.keys() == model_layers(model).keys()
    for name, layer in found.items():
        assert torch.equal(layer.weight, wanted[name].quantized_weight()), name


def test_is_verified_inspected_and_saved_again(packed, tmp_path):
    model, out = packed
    verify_folder(out)
    inspection = inspect_folder(out)
    assert inspection.time_features["kind"] == "none"
    assert {layer.kind for layer in layer_rows(inspection)} == set(KINDS[type(model).__name__])
    assert not inspection.fallbacks.keys() & {f"{name}.weight" for name in model_layers(model)}
    again = type(model).from_pretrained(out)
    again.save_pretrained(tmp_path / "again")
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_a_pipeline_draws_as_its_dequantized_twin(tmp_path):
    build_sd3_pipeline().save_pretrained(tmp_path / "sd3")
    init_pipeline(str(tmp_path / "sd3"), tmp_path / "packed", recipe="uniform:3")
    index = json.loads((tmp_path / "packed" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    small = load_pipeline(str(tmp_path / "packed"))  # which knows that there is no T5
    small.set_progress_bar_config(disable=True)

    def draw(pipeline):
        generator = torch.Generator().manual_seed(3)
        options = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt", "generator": generator}
        return pipeline("red circle", **options).images

    picture = draw(small)
    small.transformer.dequantize()
    assert not any(isinstance(layer, PACKED_LAYERS) for layer in small.transformer.modules())
    assert torch.equal(draw(small), picture)
