"""A packed folder opened for looking: config checked, tensors on request. Loading to run is diffusers' job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.registry import DENOISER_COMPONENTS
from bitsfusion.artifact.container import StoredTensor, check_name, read_header, read_object
from bitsfusion.artifact.limits import shown
from bitsfusion.artifact.model_config import named_architecture
from bitsfusion.artifact.payload import decode_layer, decode_layers
from bitsfusion.artifact.schema import (
    CONFIG_FILE,
    PACKED_SUFFIX,
    QUANT_METHOD,
    PackedConfig,
    parse_config,
)
from bitsfusion.artifact.structure import expected_tensors
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.pipelines.folder import INDEX
from bitsfusion.pipelines.weight_files import WeightChoice, weight_choices

_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200}\.safetensors")  # a plain name: no way out of the folder


@dataclass(frozen=True)
class PackedFolder:
    """A packed model's folder. Fields: path, the model's config.json, and its checked quantization_config."""

    path: Path
    model_config: dict[str, Any]
    config: PackedConfig

    def expected(self) -> dict[str, StoredTensor]:
        """Every tensor that the files must hold, as in memory once decoded, in module order.

        Raises:
            ArtifactError: the config does not fit the model that it describes, or describes none.
        """
        return expected_tensors(self.model_config, self.config)

    @property
    def architecture(self) -> Architecture:
        """What the model is; raises ArtifactError for what is never packed."""
        return named_architecture(self.model_config)

    def weight_files(self) -> tuple[Path, ...]:
        """The one weight file, or the shards that an index names.

        Raises:
            ArtifactError: neither or both are there, or the index is broken.
        """
        index = self._index
        if index is not None:
            return tuple(self.path / name for name in dict.fromkeys(_weight_map(index).values()))
        choices = self._choices
        return (choices[0].path if choices else self.path / self.architecture.weights,)

    @property
    def _choices(self) -> list[WeightChoice]:
        """The weights under their plain names or a variant's, of which there is one at most."""
        stem = self.architecture.weights.removesuffix(".safetensors")
        choices = [choice for choice in weight_choices(self.path) if choice.path.name.startswith(f"{stem}.")]
        if len(choices) > 1:
            first, second = choices[0].path, choices[1].path
            raise ArtifactError(f"{first}: got it beside {second.name}, wanted one of both: remove the older one")
        return choices

    @property
    def _index(self) -> Path | None:
        return next((choice.path for choice in self._choices if choice.index), None)

    @contextmanager
    def tensors(self) -> Iterator[Tensors]:
        """The tensors of the weight files, read one by one.

        Raises:
            ArtifactError: a file is missing or no safetensors file, or the shards are not what their index says.
        """
        with open_tensors(self.config, self.weight_files()) as tensors:
            index = self._index
            if index is not None:
                _check_index(_weight_map(index), tensors.places)
            yield tensors


class Tensors:
    """Access to open weight files; `stored` says what they hold, in their order, `places` in which file."""

    def __init__(
        self,
        config: PackedConfig,
        stored: Mapping[str, StoredTensor],
        opened: Mapping[str, Any],
        places: Mapping[str, Path],
    ) -> None:
        self._config, self._opened = config, opened
        self.stored, self.places = stored, places

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.stored)

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as it lies in the file.

        Raises:
            ArtifactError: there is none of that name.
        """
        try:
            tensor: np.ndarray = self._opened[name].get_tensor(name)
        except (KeyError, SafetensorError):
            raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: got no tensor {name} in the file") from None
        return tensor

    def buffer(self, layer: str) -> np.ndarray:
        """A packed layer's buffer as in memory; errors as `decode_layer`."""
        return decode_layer(layer, self.tensor(layer + PACKED_SUFFIX), self._config.layers[layer])

    def buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every packed layer's name and buffer, a few at a time on threads; errors as `decode_layer`."""
        layers = self._config.layers.items()
        return decode_layers((name, self.tensor(name + PACKED_SUFFIX), entry) for name, entry in layers)


@contextmanager
def open_tensors(config: PackedConfig, files: Iterable[Path]) -> Iterator[Tensors]:
    """The tensors of some safetensors files together, read one by one.

    Raises:
        ArtifactError: one is missing or no safetensors file, or a name is in two of them.
    """
    stored: dict[str, StoredTensor] = {}
    opened: dict[str, Any] = {}
    places: dict[str, Path] = {}
    with ExitStack() as stack:
        for path in files:
            header = read_header(path)
            for name in header.keys() & stored.keys():
                raise ArtifactError(f"{name}: got it in two files, wanted it once")
            try:
                file = stack.enter_context(safe_open(path, framework="np"))
            except (OSError, SafetensorError) as error:
                raise ArtifactError(f"{path}: got {shown(error)}, wanted a safetensors file") from None
            stored.update(header)
            opened.update(dict.fromkeys(header, file))
            places.update(dict.fromkeys(header, path))
        yield Tensors(config, stored, opened, places)


def _check_index(index: Mapping[str, str], places: Mapping[str, Path]) -> None:
    for name in sorted(index.keys() ^ places.keys()):
        where = "only in the index" if name in index else "only in a file"
        raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: got tensor {name} {where} of the shards")
    for name, file in index.items():
        if places[name].name != file:
            got = f"got tensor {name} in {places[name].name}, wanted it in {file}, where the index has it"
            raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: {got}")


def open_folder(path: Path | str) -> PackedFolder:
    """Opens a packed model folder, or the packed denoiser inside a pipeline folder.

    Raises:
        InputError: no such folder, or nothing packed in it.
        ArtifactError: a packed folder whose config is broken or missing.
    """
    found = open_components(path)
    return next((found[name] for name in DENOISER_COMPONENTS if name in found), None) or next(iter(found.values()))


def open_components(path: Path | str) -> dict[str, PackedFolder]:
    """Opens every packed model of a pipeline folder, by the component's name; of a model folder that one, as "".

    Raises:
        InputError: no such folder, or nothing packed in it.
        ArtifactError: a packed folder whose config is broken or missing.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder, wanted a packed model or pipeline folder")
    inside = sorted(child for child in path.iterdir() if child.is_dir()) if (path / INDEX).is_file() else []
    found = {}
    for folder in (path, *inside):
        packed = None
        if (folder / CONFIG_FILE).is_file():
            values = read_object(folder / CONFIG_FILE)
            packed = values.get("quantization_config")
        if isinstance(packed, dict) and packed.get("quant_method") == QUANT_METHOD:
            name = "" if folder == path else folder.name
            with component_named(name):
                found[name] = PackedFolder(folder, values, parse_config(packed))
        elif holds_packed_tensors(folder):
            got = "one without quant_method" if (folder / CONFIG_FILE).is_file() else "no such file"
            raise ArtifactError(f"{folder / CONFIG_FILE}: got {got} beside packed weights, wanted the config")
    if not found:
        raise InputError(
            f"{path}: got no packed model, wanted a folder with quant_method {QUANT_METHOD!r} in a {CONFIG_FILE}"
        )
    return found


@contextmanager
def component_named(name: str) -> Iterator[None]:
    """Errors within it begin with the component's name, where it is not the denoiser (or a model alone)."""
    try:
        yield
    except ArtifactError as error:
        if name in ("", *DENOISER_COMPONENTS):
            raise
        raise ArtifactError(f"{name}: {error}") from None


def holds_packed_tensors(folder: Path) -> bool:
    """Whether a folder without a readable config was a packed one."""
    names: set[str] = set()
    for choice in weight_choices(folder):
        with suppress(ArtifactError):
            names |= set(_weight_map(choice.path) if choice.index else read_header(choice.path))
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
