"""`dequantize()`: an ordinary model with the unpacked weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from bitsfusion.errors import InputError
from bitsfusion.nn.packed import PackedConv2d, PackedLinear

from .drawing import images, inputs, load


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_the_unpacked_ones(folder: Path, dtype: torch.dtype) -> None:
    packed = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype).dequantize()
    kinds = {name: type(layer) for name, layer in unet.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    assert set(kinds.values()) == {nn.Linear, nn.Conv2d}
    for name in kinds:
        one, other = unet.get_submodule(name), packed.get_submodule(name)
        assert isinstance(other, (PackedLinear, PackedConv2d))
        assert type(one.weight) is nn.Parameter and one.weight.dtype == dtype and torch.equal(one.weight, other.weight)
    assert torch.equal(unet(*inputs(unet)).sample, packed(*inputs(packed)).sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_plain_diffusers_folder(
    any_step_folder: Path, pipeline: StableDiffusionPipeline, tmp_path: Path, dtype: torch.dtype
) -> None:
    made = load(any_step_folder, dtype=dtype)
    expected = images(made)
    made.unet.dequantize()
    assert np.array_equal(images(made), expected)
    made.save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "unet" / "config.json").read_text())
    assert "quantization_config" not in config and config["block_out_channels"] == [32, 64]
    again = load(tmp_path / "dense", dtype=dtype)
    assert type(again.unet.conv_in) is nn.Conv2d and not hasattr(again.unet, "hf_quantizer")
    assert again.unet.state_dict().keys() == pipeline.unet.state_dict().keys()
    assert np.array_equal(images(again), expected)


def test_cached_rows_stay_and_no_plain_folder_is_written(folder: Path, tmp_path: Path) -> None:
    made = load(folder)
    expected = images(made)
    made.unet.dequantize()
    assert np.array_equal(images(made), expected)
    with pytest.raises(InputError, match="time layers were replaced by stored features of pndm 4 steps, dpm 3 steps"):
        made.unet.save_pretrained(tmp_path / "unet")
    assert not (tmp_path / "unet").exists()
    with pytest.raises(InputError, match="time layers were replaced by stored features"):
        made.save_pretrained(tmp_path / "pipeline")
    assert not (tmp_path / "pipeline" / "unet").exists()


@pytest.mark.parametrize("name", ["folder", "any_step_folder"])
def test_twice_is_refused(request: pytest.FixtureRequest, name: str) -> None:
    unet = load(request.getfixturevalue(name)).unet.dequantize()
    with pytest.raises((InputError, ValueError), match=r"dense already|first quantize"):
        unet.dequantize()


def test_the_dense_model_casts_and_trains(any_step_folder: Path) -> None:
    unet = load(any_step_folder).unet.dequantize()
    unet(*inputs(unet)).sample.square().mean().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())
    assert unet.half().conv_in.weight.dtype == torch.float16
