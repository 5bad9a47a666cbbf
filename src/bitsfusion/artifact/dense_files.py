"""The components of a packed pipeline that are not packed: are their files whole, and do they fit each other?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bitsfusion.architectures.base import Architecture
from bitsfusion.artifact.limits import JSON_BYTES, shown
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json
from bitsfusion.pipelines.completeness import check_component, read_shapes
from bitsfusion.pipelines.folder import Component

_VOCABULARY_BYTES = 16 * JSON_BYTES


def check_dense(component: Component) -> None:
    """Checks a component by its files' headers; their values only SHA256SUMS can tell.

    Raises:
        InputError: a file that is missing, cut or no JSON, an index that contradicts its shards, a tensor that the
            model lacks or that has another shape (of classes that can be packed; transformers and diffusers say the
            rest).
    """
    check_component(component)
    for file in component.files:
        if file.suffix == ".json" and file.stat().st_size <= _VOCABULARY_BYTES:
            _check_json(file)
    weights = component.weights
    if weights is None:
        return
    if weights.index is not None:
        _check_index(weights.index)
    if component.architecture is not None and not _fits(component.folder, component.architecture, weights.files):
        from bitsfusion.pipelines.model_folder import open_model  # which imports torch, builds the model and judges

        open_model(component.folder, component.architecture)


def _fits(folder: Path, architecture: Architecture, files: Sequence[Path]) -> bool:
    """Whether the files hold what the config asks for, where that is known without building the model."""
    config: Any = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("_class_name", architecture.name) != architecture.name:
        return False
    shapes = architecture.shapes(config)
    if shapes is None or (architecture.library == "diffusers" and "_class_name" not in config):
        return False
    stored = {name: found for file in files for name, found in read_shapes(file).items()}
    names = architecture.current_names(shapes.keys(), stored.keys())
    if names is None or not shapes.keys() <= names.keys():
        return False
    held = ((shape, *stored[names[name]]) for name, shape in shapes.items())
    return all(shape == got and dtype.startswith(("F", "BF")) for shape, got, dtype in held)


def _check_json(file: Path) -> None:
    try:
        json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: got {shown(error)}, wanted JSON") from None


def _check_index(index: Path) -> None:
    """Whether every shard holds just the tensors that the index says."""
    listed: dict[str, str] = read_json(index)["weight_map"]
    for name in sorted(set(listed.values())):
        try:
            with safe_open(index.parent / name, framework="np") as file:
                got = set(file.keys())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{index.parent / name}: got {shown(error)}, wanted a safetensors file") from None
        wanted = {tensor for tensor, place in listed.items() if place == name}
        for tensor in sorted(got ^ wanted):
            where = "only in the index" if tensor in wanted else "only in the file"
            raise InputError(f"{tensor}: got it {where} ({name}, {index.name}), wanted both to agree")
