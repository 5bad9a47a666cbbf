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
from bitsfusion.runs.packing import init_pipeline

from ..tiny.transformers import CONFIGS, build_sd3_pipeline, build_transformer

MODULATION = ("double_stream_modulation", "single_stream_modulation")
COMMON = ("transformer_blocks", "single_transformer_blocks", "layers", "joint_transformer_blocks")


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
