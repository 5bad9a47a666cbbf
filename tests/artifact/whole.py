"""Text encoders and VAEs packed at every number of bits, and what their weights must then be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bitsfusion.architectures.registry import ARCHITECTURES, model_layers
from bitsfusion.artifact.parts import parts_of_folder
from bitsfusion.artifact.writer import write_parts
from bitsfusion.diffusion.samplers import Coverage
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import ScaleInit, dequantize, quantize
from bitsfusion.pipelines.folder import read_folder
from bitsfusion.pipelines.model_folder import open_model


def bits_of(layers: Any) -> dict[str, int]:
    """1 to 8 in turn."""
    return {name: 1 + number % 8 for number, name in enumerate(layers)}


def pack(source: Path, out: Path, names: tuple[str, ...]) -> None:
    """The pipeline in `source` with some components packed; time features for two steps."""
    parts, pipeline = {}, read_folder(source)
    for name in names:
        component = pipeline.component(name)
        assert component is not None and component.architecture is not None
        architecture = component.architecture
        folder = open_model(source / name, architecture)
        bits = bits_of(model_layers(folder.skeleton, architecture))
        coverage = Coverage((751, 501, 251, 1)) if name == "unet" else None
        parts[name] = parts_of_folder(folder, bits, ScaleInit.EXACT, coverage)
    write_parts(parts, pipeline, out)


def quantized(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Layer -> the weight that packing must give, by the quantizer's own formulas."""
    architecture = ARCHITECTURES[type(model).__name__]
    weights = {}
    for name, bits in bits_of(model_layers(model, architecture)).items():
        weight = model.get_submodule(name).weight.detach().float()
        scale = layer_scale(name, weight, bits, ScaleInit.EXACT)
        weights[name] = dequantize(quantize(weight, scale, bits), scale)
    return weights
