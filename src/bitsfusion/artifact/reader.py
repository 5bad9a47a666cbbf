"""A packed folder opened for looking: config checked, tensors on request. Loading to run is diffusers' job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitsfusion.artifact.container import StoredTensor, check_name, read_header, read_object
from bitsfusion.artifact.limits import shown
from bitsfusion.artifact.payload import decode_layer, decode_layers
from bitsfusion.artifact.schema import (
    CONFIG_FILE,
    INDEX_FILE,
    PACKED_SUFFIX,
    QUANT_METHOD,
    WEIGHTS_FILE,
    PackedConfig,
    parse_config,
)
from bitsfusion.artifact.skeleton import empty_model, make_packed
from bitsfusion.errors import ArtifactError, InputError

_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200}\.safetensors")  # a plain name: no way out of the folder


@dataclass(frozen=True)
class PackedFolder:
    """A packed model's folder. Fields: path, the model's config.json, and its checked quantization_config."""

    path: Path
    model_config: dict[str, Any]
    config: PackedConfig

    def expected(self) -> dict[str, Tensor]:
        """Every tensor that the files must hold, on meta, as in memory once decoded.

        Raises:
            ArtifactError: the config does not fit the model that it describes, or describes none.
        """
        model = empty_model(self.model_config)
        make_packed(model, self.config)
        return dict(model.state_dict())

    def weight_files(self) -> tuple[Path, ...]:
        """The one weight file, or the shards that an index names.

        Raises:
            ArtifactError: neither or both are there, or the index is broken.
        """
        single, index = self.path / WEIGHTS_FILE, self.path / INDEX_FILE
        if not index.is_file():
            return (single,)
        if single.exists():
            raise ArtifactError(f"{index}: got it beside {WEIGHTS_FILE}, wanted one of both: remove the older one")
        return tuple(self.path / name for name in dict.fromkeys(_weight_map(index).values()))

    @contextmanager
    def tensors(self) -> Iterator[Tensors]:
        """The tensors of the weight files, read one by one.

        Raises:
            ArtifactError: a file is missing or no safetensors file, or the shards are not what their index says.
        """
        stored: dict[str, StoredTensor] = {}
        opened: dict[str, Any] = {}
        with ExitStack() as stack:
            for path in self.weight_files():
                header = read_header(path)
                for name in header.keys() & stored.keys():
                    raise ArtifactError(f"{name}: got it in two files, wanted it once")
                try:
                    file = stack.enter_context(safe_open(path, framework="pt"))
                except (OSError, SafetensorError) as error:
                    raise ArtifactError(f"{path}: got {shown(error)}, wanted a safetensors file") from None
                stored.update(header)
                opened.update(dict.fromkeys(header, file))
            if (self.path / INDEX_FILE).is_file():
                self._check_index(opened)
            yield Tensors(self.config, stored, opened)

    def _check_index(self, opened: Mapping[str, Any]) -> None:
        index = _weight_map(self.path / INDEX_FILE)
        for name in sorted(index.keys() ^ opened.keys()):
            where = "only in the index" if name in index else "only in a file"
            raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: got tensor {name} {where} of the shards")


class Tensors:
    """Access to open weight files; `stored` says what they hold, in their order."""

    def __init__(self, config: PackedConfig, stored: Mapping[str, StoredTensor], opened: Mapping[str, Any]) -> None:
        self._config, self._opened = config, opened
        self.stored = stored

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.stored)

    def tensor(self, name: str) -> Tensor:
        """A tensor as it lies in the file.

        Raises:
            ArtifactError: there is none of that name.
        """
        try:
            tensor: Tensor = self._opened[name].get_tensor(name)
        except (KeyError, SafetensorError):
            raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: got no tensor {name} in the file") from None
        return tensor

    def buffer(self, layer: str) -> Tensor:
        """A packed layer's buffer as in memory; errors as `decode_layer`."""
        return decode_layer(layer, self.tensor(layer + PACKED_SUFFIX), self._config.layers[layer])

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Every packed layer's name and buffer, a few at a time on threads; errors as `decode_layer`."""
        layers = self._config.layers.items()
        return decode_layers((name, self.tensor(name + PACKED_SUFFIX), entry) for name, entry in layers)


def open_folder(path: Path | str) -> PackedFolder:
    """Opens a packed model folder, or the packed model inside a pipeline folder.

    Raises:
        InputError: no such folder, or nothing packed in it.
        ArtifactError: a packed folder whose config is broken or missing.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder, wanted a packed model or pipeline folder")
    inside = (
        sorted(child for child in path.iterdir() if child.is_dir()) if (path / "model_index.json").is_file() else []
    )
    for folder in (path, *inside):
        if (folder / CONFIG_FILE).is_file():
            values = read_object(folder / CONFIG_FILE)
            packed = values.get("quantization_config")
            if isinstance(packed, dict) and packed.get("quant_method") == QUANT_METHOD:
                return PackedFolder(folder, values, parse_config(packed))
        elif holds_packed_tensors(folder):
            raise ArtifactError(f"{folder / CONFIG_FILE}: got no such file beside packed weights, wanted the config")
    raise InputError(
        f"{path}: got no packed model, wanted a folder with quant_method {QUANT_METHOD!r} in a {CONFIG_FILE}"
    )


def holds_packed_tensors(folder: Path) -> bool:
    """Whether a folder without a readable config was a packed one."""
    try:
        if (folder / INDEX_FILE).is_file():
            names = set(_weight_map(folder / INDEX_FILE))
        else:
            names = set(read_header(folder / WEIGHTS_FILE))
    except ArtifactError:
        return False
    return any(name.endswith(PACKED_SUFFIX) for name in names)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, of an index as diffusers' `save_pretrained(max_shard_size=...)` writes it."""
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ArtifactError(f"{index}: got no weight_map, wanted an object of tensor names and files")
    for name, file in files.items():
        check_name(name)
        if not isinstance(file, str) or _SHARD.fullmatch(file) is None:
            got = shown(repr(file), 80) if isinstance(file, str) else f"of type {type(file).__name__}"
            raise ArtifactError(f"{name}: got file {got} in {index.name}, wanted a plain *.safetensors name")
    return files
