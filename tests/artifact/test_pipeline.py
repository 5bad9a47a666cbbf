"""From a trained UNet to a folder to the same images."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel

import bitsfusion  # noqa: F401  registers with diffusers
from bitsfusion.diffusion.samplers import cover
from bitsfusion.diffusion.time_features import cache_time_features
from bitsfusion.errors import InputError
from bitsfusion.nn.fake_quantized import FakeQuantizedConv2d, FakeQuantizedLinear
from bitsfusion.nn.packed import PackedConv2d, PackedLinear
from bitsfusion.nn.replace import fake_quantized_layers

from .conftest import SAMPLERS
from .drawing import images, load


def in_memory(pipeline: StableDiffusionPipeline, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    unet = copy.deepcopy(unet)
    cache_time_features(unet, cover(SAMPLERS, pipeline.scheduler.config))
    made = StableDiffusionPipeline(**{**pipeline.components, "unet": unet}, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def test_same_images(pipeline: StableDiffusionPipeline, student: UNet2DConditionModel, folder: Path) -> None:
    expected = images(in_memory(pipeline, student))
    assert np.array_equal(images(load(folder)), expected)
    assert np.abs(images(pipeline) - expected).max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_train_equals_serve(student: UNet2DConditionModel, folder: Path, dtype: torch.dtype) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    assert unet.dtype == dtype
    trained = fake_quantized_layers(student)
    kept = {name: layer for name, layer in trained.items() if "time_emb" not in name}
    assert len(kept) > 40 and {layer.bits for layer in kept.values()} == set(range(1, 9))
    for name, layer in kept.items():
        packed = unet.get_submodule(name)
        assert isinstance(packed, (PackedLinear, PackedConv2d))
        assert torch.equal(packed.weight, layer.quantized_weight().detach().to(dtype)), name
        if layer.bias is not None:
            assert torch.equal(packed.bias, layer.bias.detach().to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_generates(folder: Path, dtype: torch.dtype) -> None:
    half = images(load(folder, torch_dtype=dtype))
    assert np.isfinite(half).all()
    assert np.abs(half - images(load(folder))).mean() < 0.05


def test_no_dense_weight_and_no_meta_is_left(folder: Path) -> None:
    unet = load(folder).unet
    assert not any(isinstance(module, (FakeQuantizedLinear, FakeQuantizedConv2d)) for module in unet.modules())
    dense = {name for name, parameter in unet.named_parameters() if parameter.dim() > 1}
    assert dense == set()
    assert not any(tensor.is_meta for tensor in (*unet.parameters(), *unet.buffers()))


def test_other_covered_sampler_and_uncovered_steps(folder: Path) -> None:
    loaded = load(folder)
    loaded.scheduler = DPMSolverMultistepScheduler.from_config(loaded.scheduler.config)
    images(loaded, 3)
    with pytest.raises(InputError, match="covers pndm 4 steps, dpm 3 steps"):
        images(loaded, 7)


def test_save_pretrained_round_trip(folder: Path, tmp_path: Path) -> None:
    from bitsfusion.artifact.verify import verify_folder

    loaded = load(folder)
    loaded.save_pretrained(tmp_path / "again")
    verify_folder(tmp_path / "again")
    assert np.array_equal(images(load(tmp_path / "again")), images(loaded))
    packed = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / packed).read_bytes() == (folder / packed).read_bytes()


def test_no_pickle_anywhere(folder: Path) -> None:
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth", ".ckpt"))]
    assert "model_index.json" in names and names.count("diffusion_pytorch_model.safetensors") == 2
