"""The parts of a pipeline that are not packed (tokenizers, schedulers, dense models), copied as files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

from bitsfusion.errors import InputError
from bitsfusion.io.files import read_json
from bitsfusion.pipelines.weight_files import is_weights, weight_files

INDEX = "model_index.json"
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")


def components(source: Path) -> list[str]:
    """The components of a pipeline folder that have files of their own, the UNet included, in the index's order.

    Raises:
        InputError: no pipeline folder, or one that lacks the folder of a component.
    """
    names = [name for name, entry in _index(source).items() if _is_component(entry)]
    for name in names:
        if _NAME.fullmatch(name) is None or not (source / name).is_dir():
            raise InputError(f"{source}: got no folder of component {name!r}, which {INDEX} lists")
    return names


def component_class(source: Path, name: str) -> str | None:
    """The class that the pipeline's index names for a component; None where it has no such component."""
    entry: Any = _index(source).get(name)
    return entry[1] if _is_component(entry) else None


def copy_components(source: Path, target: Path, without: Container[str] = ("unet",)) -> None:
    """Copies all but some components from one pipeline folder to another, weights as safetensors only.

    Where a component has only a variant such as fp16, the copy has plain names: a packed folder loads without
    `variant=`. Files that hold the same weights in other formats or variants stay behind. Configs of transformers'
    models (text encoders) ask for float32: without `dtype=` diffusers loads its own models, the UNet too, in float32,
    but those in whatever dtype their files have, and float16 text states would meet a float32 UNet.

    Raises:
        InputError: as `components`, or a component whose weights are no safetensors.
    """
    for name in components(source):
        if name not in without:
            _copy(source / name, target / name)
    index = {key: value for key, value in _index(source).items() if key != "_name_or_path"}
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    weights = weight_files(source)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.startswith(".") and not is_weights(file.name):
            shutil.copyfile(file, target / file.name)
    if weights is None:
        return
    _compute_in_float32(target / "config.json")
    for file in weights.files:
        shutil.copyfile(file, target / weights.plain_name(file))
    if weights.index is not None:
        index = read_json(weights.index)
        names = {name: weights.plain_name(Path(file)) for name, file in index["weight_map"].items()}
        text = json.dumps({**index, "weight_map": names}, indent=2) + "\n"
        (target / weights.plain_name(weights.index)).write_text(text, encoding="utf-8")


def _compute_in_float32(path: Path) -> None:
    config = read_json(path)
    if isinstance(config, dict) and "_class_name" not in config:  # which all of diffusers' own models have
        config.pop("torch_dtype", None)  # its name before transformers 5
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def _index(source: Path) -> dict[str, Any]:
    index = read_json(source / INDEX)
    if not isinstance(index, dict):
        raise InputError(f"{source / INDEX}: got a {type(index).__name__}, wanted an object of components")
    return index


def _is_component(entry: Any) -> bool:
    """Components are pairs of a library and a class; other values are the pipeline's own options."""
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
