"""Uniform ternary with an FP16 tail, the form of Bonsai Image 4B: which layers are in the tail, and the file it makes.

Bonsai keeps the embedders, the modulation and what writes the result in FP16, 5 % of FLUX.2 klein's weights. In a model
whose modulation is a third of the weights that would be five times the size; here the tail begins with the model's ends
and takes as many layers as make the file as large as the one it is compared with.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bitsfusion.architectures.base import DIFFUSERS_FILE
from bitsfusion.architectures.layers import FIRST_LAST_BITS, LayerInfo, LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.writer import write_model
from bitsfusion.nn.replace import fake_quantize_model

TERNARY = 1


def tail_first(layers: Mapping[str, LayerInfo], errors: Mapping[tuple[str, int], float]) -> list[str]:
    """All layers in the order in which they come into the tail: the ends, the smallest first, then by error a weight.

    Args:
        errors: (layer, bits) -> measured error, of the layers that a recipe names.
    """
    ends = sorted((name for name, layer in layers.items() if layer.role is LayerRole.FIRST_LAST), key=_size_in(layers))
    others = [name for name in layers if name not in ends]
    return ends + sorted(others, key=lambda name: -errors[name, TERNARY] / layers[name].numel)


def fill_tail(model: nn.Module, order: list[str], budget: int) -> list[str]:
    """The layers of `order` that fit into a file of `budget` bytes, a layer more where that comes nearer to it.

    Args:
        model: full precision.
    """
    layers = model_layers(model)
    size, packed = ternary_bytes(model)
    tail: list[str] = []
    for name in order:
        larger = size + 2 * layers[name].numel - packed[name]
        if abs(larger - budget) < abs(size - budget):
            tail, size = [*tail, name], larger
    return [name for name in layers if name in tail]


def ternary_bits(layers: Mapping[str, LayerInfo], tail: list[str]) -> dict[str, int]:
    """Bits of the layers outside of the tail: ternary, the ends 8."""
    return {
        name: FIRST_LAST_BITS if layer.role is LayerRole.FIRST_LAST else TERNARY
        for name, layer in layers.items()
        if name not in tail
    }


def ternary_bytes(model: nn.Module) -> tuple[int, dict[str, int]]:
    """The file of a model rounded to this form, without tail: its bytes, and those of each layer's weight."""
    student = copy.deepcopy(model)
    layers = model_layers(model)
    fake_quantize_model(student, ternary_bits(layers, []))
    with tempfile.TemporaryDirectory() as folder:
        size = write_file(student, Path(folder) / "file", [])
        tensors = load_file(Path(folder) / "file" / DIFFUSERS_FILE)
    packed = dict.fromkeys(layers, 0)
    for name, tensor in tensors.items():
        if _layer(name) in packed and not name.endswith(".bias"):
            packed[_layer(name)] += tensor.numel() * tensor.element_size()
    return size, packed


def write_file(student: nn.Module, folder: Path, tail: list[str]) -> int:
    """Writes the weights as the product packs them, the tail in FP16; the file's bytes.

    Args:
        student: fake-quantized but for the tail; not changed.
        folder: is made.
    """
    whole: Any = copy.deepcopy(student)
    fake_quantize_model(whole, dict.fromkeys(tail, FIRST_LAST_BITS))
    write_model(whole, folder, None)
    file = folder / DIFFUSERS_FILE
    if tail:
        kept = {name: tensor for name, tensor in load_file(file).items() if _layer(name) not in tail}
        dense = {f"{name}.{part}": tensor for name in tail for part, tensor in _parts(student.get_submodule(name))}
        save_file(kept | dense, file)
    return file.stat().st_size


def round_tail(student: nn.Module, tail: list[str]) -> None:
    """Rounds the tail to what its file holds, in place."""
    for name in tail:
        layer: Any = student.get_submodule(name)
        layer.weight.data.copy_(layer.weight.data.half().float())


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _parts(layer: Any) -> list[tuple[str, torch.Tensor]]:
    parts = [("weight", layer.weight.detach().half().contiguous())]
    return parts if layer.bias is None else [*parts, ("bias", layer.bias.detach().float().contiguous())]


def _size_in(layers: Mapping[str, LayerInfo]) -> Any:
    return lambda name: layers[name].numel
