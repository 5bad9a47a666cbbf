"""Offloading: hooks of accelerate and diffusers find buffers and biases where they look for them.

Without an accelerator the device computed on is the CPU, and what is offloaded waits on meta, in a map of weights or on
a disk.
"""

from __future__ import annotations

from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from bitsfusion.errors import InputError

from .drawing import images, load

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    return images(load(folder))


@pytest.mark.parametrize("buffers", [True, False], ids=["with buffers", "parameters alone"])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_layer_by_layer(folder: Path, expected: np.ndarray, tmp_path: Path, place: str, buffers: bool) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    if place == "memory":
        accelerate.cpu_offload(unet, execution_device=CPU, offload_buffers=buffers)
    else:
        accelerate.disk_offload(unet, tmp_path, execution_device=CPU, offload_buffers=buffers)
    assert unet.conv_in.bias.is_meta and unet.conv_in.packed.is_meta == buffers
    assert np.array_equal(images(load(folder, unet=unet)), expected)
    assert unet.conv_in.bias.is_meta and unet.conv_in.packed.is_meta == buffers


def test_what_is_offloaded_is_neither_saved_nor_unpacked(folder: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    accelerate.cpu_offload(unet, execution_device=CPU, offload_buffers=True)
    with pytest.raises(InputError, match="got a tensor that is offloaded"):
        unet.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="got a layer that is offloaded"):
        unet.dequantize()


def test_model_offload(folder: Path, expected: np.ndarray) -> None:
    pipeline = load(folder)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(images(pipeline), expected)


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload(folder: Path, expected: np.ndarray, tmp_path: Path, kind: str, place: str) -> None:
    pipeline = load(folder)
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    disk = {"offload_to_disk_path": str(tmp_path)} if place == "disk" else {}
    pipeline.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **options, **disk)
    assert np.array_equal(images(pipeline), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_from_cuda(folder: Path, expected: np.ndarray, way: str) -> None:
    pipeline = load(folder)
    getattr(pipeline, way)()
    assert np.abs(images(pipeline) - expected).mean() < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("stream", [False, True])
def test_group_offload_from_cuda(folder: Path, expected: np.ndarray, stream: bool) -> None:
    pipeline = load(folder).to("cuda")
    pipeline.unet.enable_group_offload(
        onload_device=torch.device("cuda"), offload_device=CPU, offload_type="leaf_level", use_stream=stream
    )
    assert np.abs(images(pipeline) - expected).mean() < 1e-2


@pytest.mark.gpu
def test_device_map_on_cuda(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", device_map="auto")
    assert unet.conv_in.packed.is_cuda
