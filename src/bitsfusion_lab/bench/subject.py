"""What is measured: a packed folder and the dense model that it was made from, found and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.reader import open_folder
from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.artifact.skeleton import empty_model
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.io.hashes import sha256_folder
from bitsfusion.io.schema import named
from bitsfusion.pipelines.resolve import resolve

ANY_STEP = 500
"""The time step where the packed model takes any."""


@dataclass(frozen=True)
class Subject:
    """Fields: the packed and the dense model's folders, both configs, and the weights of all layers by name."""

    packed: Path
    dense: Path
    packed_config: PackedConfig
    model_config: dict[str, Any]
    weights: dict[str, int]

    @property
    def step(self) -> int:
        """The middle one of the time steps that the packed model covers."""
        steps = sorted(step for step in self.packed_config.time_features.steps if step == int(step))
        return int(steps[len(steps) // 2]) if steps else ANY_STEP

    def hashes(self) -> dict[str, str]:
        """SHA-256 of both folders."""
        return {"packed_sha256": sha256_folder(self.packed), "dense_sha256": sha256_folder(self.dense)}


def find_subject(folder: Path, model: str) -> Subject:
    """Opens both and sees that they are the same model.

    Args:
        folder: a packed pipeline or model folder.
        model: the dense one: "embedded", a pipeline folder, a model folder, or a hub id.

    Raises:
        InputError: no such folder, nothing packed, no denoiser, or layers that differ, by name.
        ArtifactError: a packed folder that is broken.
    """
    packed = open_folder(folder)
    dense = resolve(model).denoiser.folder
    try:
        model_config = json.loads((dense / "config.json").read_text(encoding="utf-8"))
        if "quantization_config" in model_config:
            raise InputError(f"{model}: got a quantized model, wanted the dense one")
        layers = model_layers(empty_model(model_config))
    except (OSError, ValueError, AttributeError, ArtifactError) as error:
        raise InputError(f"{model}: could not be read as a model of diffusers: {error}") from None
    wanted = {name: layer.shape for name, layer in layers.items()}
    config = packed.config
    got = {name: tuple(entry.shape) for name, entry in config.layers.items()} | {
        name: tuple(shape) for name, shape in config.removed.items()
    }
    differ = [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)]
    if differ:
        name = differ[0]
        shapes = [str(list(shapes[name])) if name in shapes else "no such layer" for shapes in (got, wanted)]
        raise InputError(
            f"{folder}: {name}: got {shapes[0]}, wanted {shapes[1]} as in {model} (layers that differ: {named(differ)})"
        )
    return Subject(packed.path, dense, config, model_config, {name: layer.numel for name, layer in layers.items()})
