"""`init` on pipelines of every kind with a UNet2DConditionModel, and its choice of bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from diffusers import (
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModelWithProjection

import bitsfusion  # noqa: F401  registers with diffusers
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.diffusion.samplers import SamplerSteps
from bitsfusion.diffusion.time_features import BASIS
from bitsfusion.embedded import PIPELINE_FOLDER
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_file, sha256_json
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.recipe.assign import assign
from bitsfusion.recipe.named import recipe_bits
from bitsfusion.recipe.schema import write_recipe
from bitsfusion.runs.components import WHOLE
from bitsfusion.runs.packing import init_pipeline, pack_checkpoint
from bitsfusion.sensitivity.weight_error import weight_error_table
from bitsfusion.training.checkpoint import identity, save_student

from ..tiny.pipeline import build_pipeline
from ..tiny.text import build_text_encoder, build_tokenizer
from ..tiny.unet import build_smooth_unet, build_unet, sdxl
from ..tiny.vae import build_vae


@pytest.fixture(scope="module")
def layers():
    return model_layers(load_pipeline("embedded").unet)


def with_unet(folder: Path, **changes) -> Path:
    """The embedded pipeline's folder with another UNet: random weights, `changes` in the config."""
    shutil.copytree(PIPELINE_FOLDER, folder)
    config = UNet2DConditionModel.load_config(PIPELINE_FOLDER / "unet")
    shutil.rmtree(folder / "unet")
    torch.manual_seed(0)
    UNet2DConditionModel.from_config({**config, **changes}).save_pretrained(folder / "unet")
    return folder


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_uniform(tmp_path, layers, bits):
    config = init_pipeline("embedded", tmp_path / "out", recipe=f"uniform:{bits}")["unet"]
    kept = {name: layer for name, layer in layers.items() if layer.role is not LayerRole.TIME}
    wanted = {name: 8 if layer.role is LayerRole.FIRST_LAST else bits for name, layer in kept.items()}
    assert config.bits == wanted
    assert config.provenance == {"recipe": f"uniform:{bits}", "scale_init": "exact"}
    verify_folder(tmp_path / "out")


def test_the_bytes_are_those_of_earlier_versions(tmp_path):
    """Made by the first version; the bytes in memory everywhere, the file's where zstd is the one that made it."""
    out = tmp_path / "out"
    config = init_pipeline("embedded", out, recipe="uniform:2", samplers=[SamplerSteps("pndm", 50)])["unet"]
    layers = sha256_json({name: config.layers[name].sha256 for name in sorted(config.layers)})
    assert layers == "c39027f1259ba246dba922eb6d6f1f58850a7feb161b16faee636d9cc3ecb2b4"
    if zstandard.ZSTD_VERSION == (1, 5, 7):
        file = sha256_file(out / "unet" / "diffusion_pytorch_model.safetensors")
        assert file == "5a617cd06d7227403155b81bae98f2819dfd118b9d906dd8b2f264394d3fcc51"


@pytest.mark.parametrize(
    "recipe", ["uniform:0", "uniform:9", "uniform:", "uniform:2.5", "uniform:12", "sd16", "no.json"]
)
def test_recipes_that_there_are_not(tmp_path, recipe):
    with pytest.raises(InputError, match=f"got '{recipe}', wanted"):
        init_pipeline("embedded", tmp_path / "out", recipe=recipe)


@pytest.mark.parametrize("bits", [1.99, 2.5, 4.0])
def test_average_bits_without_a_recipe(tmp_path, bits):
    config = init_pipeline("embedded", tmp_path / "out", bits=bits)["unet"]
    assert bits - 0.01 < config.average_bits <= bits
    assert config.provenance["recipe"] == "weight_error"
    assert config.time_features.kind == "basis"


def test_average_bits_count_time_layers_that_stay(tmp_path):
    config = init_pipeline("embedded", tmp_path / "out", bits=2.3, samplers=None)["unet"]
    assert 2.29 < config.average_bits <= 2.3
    assert config.time_features.kind == "layers_8bit" and config.bits["time_embedding.linear_1"] == 8


def test_a_recipe_or_bits_and_not_both(tmp_path):
    for both, got in (({}, "neither"), ({"recipe": "uniform:2", "bits": 2.0}, "both")):
        with pytest.raises(InputError, match=f"got {got}, wanted one of them"):
            init_pipeline("embedded", tmp_path / "out", **both)
    with pytest.raises(InputError, match=r"got 0\.5 bits on average"):
        init_pipeline("embedded", tmp_path / "out", bits=0.5)


def test_weight_error_sees_what_is_hard_to_round_and_what_is_small(layers):
    generator = torch.Generator().manual_seed(0)
    chosen = {name: layer for name, layer in layers.items() if layer.role is LayerRole.QUANTIZED}
    ternary, heavy, plain = [name for name, layer in chosen.items() if layer.shape == (128, 128)][:3]

    def weight(name):
        normal = torch.randn(layers[name].shape, generator=generator)
        return normal.sign() if name == ternary else normal**3 if name == heavy else normal

    table = weight_error_table(layers, weight, model="made up")
    error = {(row.layer, row.bits): row.mse for row in table.rows}
    assert max(error[ternary, bits] for bits in (1, 2, 3)) < 1e-6
    assert all(error[heavy, bits] > error[plain, bits] for bits in (1, 2, 3))
    largest, smallest = (pick(chosen, key=lambda name: chosen[name].numel) for pick in (max, min))
    assert error[largest, 1] < error[smallest, 1]
    bits = assign(table, 1.99).bits
    assert bits[ternary] == 1 < bits[plain] <= bits[heavy] and bits[largest] < bits[smallest]


def test_the_recipe_of_the_base_serves_its_inpainting_fine_tune(tmp_path):
    base = model_layers(build_unet())
    recipe = assign(weight_error_table(base, lambda name: torch.randn(base[name].shape), model="base"), 3.0)
    write_recipe(tmp_path / "recipe.json", recipe)
    model = build_pipeline(build_smooth_unet(in_channels=9), build_vae(), StableDiffusionInpaintPipeline)
    model.save_pretrained(tmp_path / "model")
    config = init_pipeline(str(tmp_path / "model"), tmp_path / "out", recipe=str(tmp_path / "recipe.json"))["unet"]
    assert config.layers["conv_in"].shape == (16, 9, 3, 3) and config.bits == recipe.bits
    loaded = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)
    picture = Image.new("RGB", (16, 16), "white")
    mask = picture.convert("L")
    made = loaded("a red circle", image=picture, mask_image=mask, num_inference_steps=50, height=16, width=16)
    assert made.images[0].size == (16, 16)


def test_the_recipe_of_another_base_names_the_layers(tmp_path, layers):
    recipe = assign(weight_error_table(layers, lambda name: torch.randn(layers[name].shape), model="base"), 1.99)
    write_recipe(tmp_path / "recipe.json", recipe)
    width = load_pipeline("embedded").unet.config.cross_attention_dim
    folder = with_unet(tmp_path / "model", cross_attention_dim=2 * width)
    with pytest.raises(InputError, match=r"another number of weights than the model has in: \S*attn2\.to_k") as caught:
        init_pipeline(str(folder), tmp_path / "out", recipe=str(tmp_path / "recipe.json"))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_sdxl(tmp_path):
    StableDiffusionXLPipeline(
        vae=build_vae(),
        text_encoder=build_text_encoder(32, num_hidden_layers=2),
        text_encoder_2=build_text_encoder(16, CLIPTextModelWithProjection, num_hidden_layers=2, projection_dim=16),
        tokenizer=build_tokenizer(),
        tokenizer_2=build_tokenizer(),
        unet=build_unet(cross_attention_dim=32 + 16, **sdxl(pooled=16)),
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    ).save_pretrained(tmp_path / "model")
    configs = init_pipeline(str(tmp_path / "model"), tmp_path / "out", recipe="uniform:2", others=WHOLE)
    config = configs["unet"]
    assert set(configs) == {"unet", "text_encoder", "text_encoder_2", "vae"}
    assert configs["text_encoder_2"].bits["text_projection"] == 8
    assert config.time_features.kind == "layers_8bit"
    assert "the model has addition_embed_type" in config.provenance["notes"][0]
    eight = [name for name, count in config.bits.items() if count == 8]
    assert {"conv_in", "conv_out", "add_embedding.linear_1", "add_embedding.linear_2"} <= set(eight)
    assert all(name.startswith(("conv_", "add_", "time_")) or name.endswith("time_emb_proj") for name in eight)
    verify_folder(tmp_path / "out")
    loaded = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out", add_watermarker=False)
    loaded.set_progress_bar_config(disable=True)
    image = loaded("a red circle", num_inference_steps=3, height=16, width=16, output_type="np").images[0]
    assert image.shape == (16, 16, 3)
    half = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out", add_watermarker=False, dtype=torch.float16)
    half.set_progress_bar_config(disable=True)  # its VAE is cast to float32 for decoding, and back
    made = half("a red circle", num_inference_steps=3, height=16, width=16, output_type="np").images[0]
    assert np.isfinite(made).all() and half.vae.dtype == torch.float16
    averaged = init_pipeline(str(tmp_path / "model"), tmp_path / "averaged", bits=4.0)["unet"]
    assert 3.9 < averaged.average_bits <= 4.0 and averaged.bits["add_embedding.linear_1"] == 8
    with pytest.raises(InputError, match="addition_embed_type"):
        init_pipeline(str(tmp_path / "model"), tmp_path / "x", recipe="uniform:2", samplers=[SamplerSteps("pndm", 50)])


def test_lcm(tmp_path, layers):
    """Distilled with a guidance embedding: one more time layer than its base, whose recipe serves it."""
    recipe = assign(weight_error_table(layers, lambda name: torch.randn(layers[name].shape), model="base"), 1.99)
    write_recipe(tmp_path / "recipe.json", recipe)
    folder = with_unet(tmp_path / "model", time_cond_proj_dim=24)
    LCMScheduler.from_config(read_json(folder / "scheduler" / "scheduler_config.json")).save_pretrained(
        folder / "scheduler"
    )
    index = read_json(folder / "model_index.json")
    index |= {"_class_name": "LatentConsistencyModelPipeline", "scheduler": ["diffusers", "LCMScheduler"]}
    write_json(folder / "model_index.json", index)
    config = init_pipeline(str(folder), tmp_path / "out", recipe=str(tmp_path / "recipe.json"))["unet"]
    assert "time_cond_proj_dim" in config.provenance["notes"][0]
    assert config.bits["time_embedding.cond_proj"] == 8
    loaded = LatentConsistencyModelPipeline.from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)
    loaded("a red circle", num_inference_steps=2, height=64, width=64)


def test_a_pipeline_of_an_unknown_denoiser(tmp_path):
    (tmp_path / "transformer").mkdir()
    write_json(tmp_path / "transformer" / "config.json", {"_class_name": "WanTransformer3DModel"})
    save_file({"weight": torch.zeros(1)}, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    write_json(tmp_path / "model_index.json", index)
    with pytest.raises(
        InputError, match="got a WanPipeline whose transformer is a WanTransformer3DModel, which makes videos, wanted"
    ):
        init_pipeline(str(tmp_path), tmp_path / "out", recipe="uniform:2")


def test_a_students_checkpoint(tmp_path):
    """The same UNet as from the loaded pipeline; the other components as files."""
    pipeline = load_pipeline("embedded")
    student = pipeline.unet
    fake_quantize_model(student, recipe_bits("uniform:2", model_layers(student)), ScaleInit.MINMAX)
    save_student(tmp_path / "stage", student, identity(student, {}, "", 1))
    (config,) = pack_checkpoint(tmp_path / "stage", "embedded", tmp_path / "out").values()
    assert config.provenance == {"checkpoint": "stage"}
    write_pipeline(pipeline, student, tmp_path / "loaded", BASIS, source_sha256=config.source_sha256)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "loaded" / weights).read_bytes()
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / vae).read_bytes() == (PIPELINE_FOLDER / vae).read_bytes()
    verify_folder(tmp_path / "out")
