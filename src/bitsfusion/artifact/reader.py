"""A packed folder opened for looking: config checked, tensors on request. Loading to run is diffusers' job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitsfusion.artifact.payload import decode_layer
from bitsfusion.artifact.schema import (
    CONFIG_FILE,
    PACKED_SUFFIX,
    QUANT_METHOD,
    WEIGHTS_FILE,
    PackedConfig,
    parse_config,
)
from bitsfusion.errors import ArtifactError, InputError


@dataclass(frozen=True)
class PackedFolder:
    """A packed model's folder. Fields: path, the model's config.json, and its checked quantization_config."""

    path: Path
    model_config: dict[str, Any]
    config: PackedConfig

    @property
    def weights_file(self) -> Path:
        return self.path / WEIGHTS_FILE

    @contextmanager
    def tensors(self) -> Iterator[Tensors]:
        """The tensors of the weight file, read one by one.

        Raises:
            ArtifactError: no such file, or no safetensors file.
        """
        try:
            file = safe_open(self.weights_file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{self.weights_file}: got {error}, wanted a safetensors file") from None
        with file as opened:
            yield Tensors(self.config, opened)


class Tensors:
    """Access to an open weight file; `names` in the file's order."""

    def __init__(self, config: PackedConfig, file: Any) -> None:
        self._config, self._file = config, file
        self.names: tuple[str, ...] = tuple(file.keys())

    def stored(self, name: str) -> Tensor:
        """A tensor as it lies in the file.

        Raises:
            ArtifactError: there is none of that name.
        """
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise ArtifactError(
                f"{name.removesuffix(PACKED_SUFFIX)}: got no tensor {name} in the file ({error})"
            ) from None
        return tensor

    def buffer(self, layer: str) -> Tensor:
        """A packed layer's buffer as in memory; errors as `decode_layer`."""
        return decode_layer(layer, self.stored(layer + PACKED_SUFFIX), self._config.layers[layer])


def open_folder(path: Path | str) -> PackedFolder:
    """Opens a packed model folder, or the packed model inside a pipeline folder.

    Raises:
        InputError: no such folder, or nothing packed in it.
        ArtifactError: a packed folder whose config is broken.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder, wanted a packed model or pipeline folder")
    inside = (
        sorted(child for child in path.iterdir() if child.is_dir()) if (path / "model_index.json").is_file() else []
    )
    for folder in (path, *inside):
        if (folder / CONFIG_FILE).is_file():
            values = _read_config(folder / CONFIG_FILE)
            packed = values.get("quantization_config")
            if isinstance(packed, dict) and packed.get("quant_method") == QUANT_METHOD:
                return PackedFolder(folder, values, parse_config(packed))
    raise InputError(
        f"{path}: got no packed model, wanted a folder with quant_method {QUANT_METHOD!r} in a {CONFIG_FILE}"
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: got {error}, wanted a JSON object") from None
    if not isinstance(values, dict):
        raise ArtifactError(f"{path}: got a JSON {type(values).__name__}, wanted an object")
    return values
