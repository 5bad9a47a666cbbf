"""Bits are counted: the table against the files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.nn.packed import PackedConv2d, PackedLinear
from bitsfusion.packing.accounting import average_bits
from bitsfusion.packing.entropy import entropy_bits


def test_every_byte_has_a_place(folder: Path) -> None:
    seen = inspect_folder(folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    parts = seen.bytes_on_disk
    assert parts.total == file.stat().st_size
    tensors = load_file(file)
    packed = sum(tensor.nbytes for name, tensor in tensors.items() if name.endswith(".packed"))
    assert parts.weights + parts.scales == packed == sum(layer.bytes_on_disk for layer in seen.layers)
    assert parts.time_features == tensors["time_proj.rows"].nbytes
    assert parts.header == 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert seen.file_bits == pytest.approx(8 * parts.total / seen.weights)


def test_memory_is_what_the_model_holds(folder: Path) -> None:
    seen = inspect_folder(folder)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    held = sum(tensor.nbytes for tensor in unet.state_dict().values())
    assert seen.bytes_in_memory == held - seen.bytes_on_disk.time_features  # rows are 32 bits in a float32 model


def test_average_bits_is_the_papers(folder: Path, student: UNet2DConditionModel) -> None:
    seen = inspect_folder(folder / "unet")
    dense = {name: layer.numel for name, layer in model_layers(student).items()}
    bits = {layer.name: layer.bits for layer in seen.layers}
    rows = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")["time_proj.rows"]
    assert seen.average_bits == pytest.approx(average_bits(dense, bits, rows.numel()))
    assert seen.weights == sum(dense.values())
    assert seen.removed_weights == sum(n for name, n in dense.items() if name not in bits)


def test_layers(folder: Path) -> None:
    seen = {layer.name: layer for layer in inspect_folder(folder).layers}
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    for name, module in unet.named_modules():
        if isinstance(module, (PackedLinear, PackedConv2d)):
            layer = seen.pop(name)
            assert (layer.bits, layer.levels, layer.shape) == (module.bits, 2**module.bits + 1, module.weight_shape)
            assert layer.bytes_in_memory == module.packed.nbytes
            assert layer.entropy == pytest.approx(entropy_bits(module.codes, module.bits) / layer.weights)
            assert layer.entropy <= math.log2(layer.levels)
            assert layer.scale_bytes_in_memory == 4 * layer.shape[0]
            # Two frames of a few bytes more than their content are the worst that zstd does.
            assert layer.bytes_on_disk <= layer.bytes_in_memory + 32
    assert seen == {}


def test_no_fallback_and_plain_json(folder: Path) -> None:
    seen = inspect_folder(folder)
    assert seen.fallbacks == {}
    values = json.loads(json.dumps(seen.to_dict()))
    assert values["bytes_on_disk"]["total"] == seen.bytes_on_disk.total
    assert values["time_features"]["samplers"] == [{"name": "pndm", "steps": 4}, {"name": "dpm", "steps": 3}]
    assert values["layers"][0]["name"] == "conv_in"
