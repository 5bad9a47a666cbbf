"""`export --to dense`: diffusers alone reads it and draws the packed model's pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

import bitsfusion
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.runs.packing import init_pipeline


def draw(folder: Path, kind: Any = StableDiffusionPipeline, **options: Any) -> np.ndarray:
    """[1, 64, 64, 3] of 0 .. 255."""
    pipeline = kind.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    made: np.ndarray = pipeline("a red circle", num_inference_steps=10, generator=noise, output_type="np").images
    return made * 255


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.3), ("float16", 0.6), ("bfloat16", 3)])
def test_the_same_picture(packed: Path, tmp_path: Path, dtype: str, bound: float) -> None:
    made = bitsfusion.export(packed, "dense", tmp_path / "dense", dtype=dtype)
    files = [file for file in (tmp_path / "dense").rglob("*") if file.is_file()]
    assert made.bytes == sum(file.stat().st_size for file in files) and "fitted" in made.notes[0]
    assert not any("quantization_config" in file.read_text() for file in files if file.name == "config.json")
    wanted = getattr(torch, dtype)
    for file in files:
        if file.suffix == ".safetensors":
            assert {tensor.dtype for tensor in load_file(file).values()} == {wanted}
    assert np.abs(draw(tmp_path / "dense") - draw(packed)).mean() < bound


def test_nothing_but_the_rounding_where_time_layers_are_kept(tmp_path: Path) -> None:
    init_pipeline("embedded", tmp_path / "packed", recipe="uniform:3", samplers=None)
    bitsfusion.export(tmp_path / "packed", "dense", tmp_path / "dense")
    made = StableDiffusionPipeline.from_pretrained(tmp_path / "packed")
    made.unet.dequantize()
    for model in (made.unet, made.vae, made.text_encoder):
        model.half().float()
    made.save_pretrained(tmp_path / "wanted")
    assert np.array_equal(draw(tmp_path / "dense"), draw(tmp_path / "wanted"))


def test_weights_are_the_packed_ones(packed: Path, tmp_path: Path) -> None:
    bitsfusion.export(packed, "dense", tmp_path / "dense", dtype="float32")
    dense = UNet2DConditionModel.from_pretrained(tmp_path / "dense" / "unet")
    unet: Any = UNet2DConditionModel.from_pretrained(packed / "unet")
    stored = json.loads((packed / "unet" / "config.json").read_text())["quantization_config"]
    for name in stored["layers"]:
        assert torch.equal(dense.get_submodule(name).weight, unet.get_submodule(name).weight), name
    for name in stored["removed"]:
        assert isinstance(dense.get_submodule(name), torch.nn.Linear)


def test_a_model_folder(packed: Path, tmp_path: Path) -> None:
    made = bitsfusion.export(packed / "text_encoder", "dense", tmp_path / "text", dtype="float32")
    assert made.notes == () and all(share.exact for share in made.shares)
    assert {file.name for file in (tmp_path / "text").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("cover", ["rows", "any"])
def test_every_kind_of_time_features(tmp_path: Path, cover: str) -> None:
    from bitsfusion.diffusion.samplers import SamplerSteps

    samplers = [SamplerSteps("pndm", 10)] if cover == "rows" else None
    init_pipeline("embedded", tmp_path / "packed", recipe="uniform:3", samplers=samplers)
    made = bitsfusion.export(tmp_path / "packed", "dense", tmp_path / "dense", dtype="float32")
    assert len(made.notes) == (cover == "rows")
    assert np.abs(draw(tmp_path / "dense") - draw(tmp_path / "packed")).mean() < 0.3


def test_refusals(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dtype: got 'int8', wanted float16, bfloat16, float32"):
        bitsfusion.export(packed, "dense", tmp_path / "dense", dtype="int8")
    with pytest.raises(InputError, match=r"to: got 'ckpt', wanted dense"):
        bitsfusion.export(packed, "ckpt", tmp_path / "dense")
    with pytest.raises(InputError, match="got no packed model"):
        bitsfusion.export("embedded", "dense", tmp_path / "dense")
    with pytest.raises(InputError, match="which is there"):
        bitsfusion.export(packed, "dense", packed.parent)
    with pytest.raises(InputError, match="which is in the packed folder, wanted a place outside of it"):
        bitsfusion.export(packed, "dense", packed / "dense")


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"])
def test_nothing_is_left_of_a_broken_folder(file: str, packed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(packed, broken)
    data = bytearray((broken / file).read_bytes())
    data[len(data) // 2] ^= 1
    (broken / file).write_bytes(data)
    with pytest.raises(ArtifactError):
        bitsfusion.export(broken, "dense", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
