"""Copies the components that are not packed (tokenizers, schedulers, dense models) as files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container
from pathlib import Path

from bitsfusion.io.texts import read_json
from bitsfusion.pipelines.completeness import shard_of
from bitsfusion.pipelines.folder import INDEX, Component, PipelineFolder
from bitsfusion.pipelines.weight_files import is_weights


def copy_components(source: PipelineFolder, target: Path, without: Container[str] = ()) -> None:
    """Copies all but some components of a pipeline to another folder, weights as safetensors only.

    Where a component has only a variant such as fp16, the copy has plain names: a packed folder loads without
    `variant=`. Files that hold the same weights in other formats or variants stay behind, code and hidden files too.
    Configs of transformers' models (text encoders) ask for float32: without `dtype=` diffusers loads its own models,
    the UNet too, in float32, but those in whatever dtype their files have, and float16 text states would meet a float32
    UNet.

    Raises:
        InputError: a component whose weights are no safetensors.
    """
    for component in source.components:
        if component.name not in without:
            _copy(component, target / component.name)
    index = {key: value for key, value in source.index.items() if key != "_name_or_path"}
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_all_but_weights(component: Component, target: Path) -> None:
    """The component's other files, into a new folder; a text encoder's config asks for float32."""
    target.mkdir(exist_ok=True)
    for file in component.files:
        if not is_weights(file.name) and file.suffix != ".py":
            shutil.copyfile(file, target / file.name)
    if component.weights is not None:
        _compute_in_float32(target / "config.json")


def _copy(component: Component, target: Path) -> None:
    copy_all_but_weights(component, target)
    weights = component.weights
    if weights is None:
        return
    for file in weights.files:
        shutil.copyfile(file, target / weights.plain_name(file))
    if weights.index is not None:
        index = read_json(weights.index)
        names = {name: weights.plain_name(Path(file)) for name, file in shard_of(weights).items()}
        text = json.dumps({**index, "weight_map": names}, indent=2) + "\n"
        (target / weights.plain_name(weights.index)).write_text(text, encoding="utf-8")


def _compute_in_float32(path: Path) -> None:
    config = read_json(path)
    if isinstance(config, dict) and "_class_name" not in config:  # which all of diffusers' own models have
        config.pop("torch_dtype", None)  # its name before transformers 5
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
