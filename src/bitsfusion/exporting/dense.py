"""`--to dense`: an ordinary folder of diffusers, read without this package."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bitsfusion.artifact.reader import PackedFolder, component_named, open_components
from bitsfusion.artifact.schema import CONFIG_FILE
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.artifact.weight_file import write_weights
from bitsfusion.exporting.exported import Exported, Progress, Tally, check_choice, check_new_folder, written
from bitsfusion.exporting.weights import open_weights
from bitsfusion.io.atomic import atomic_folder
from bitsfusion.io.texts import read_json
from bitsfusion.pipelines.copying import copy_all_but_weights, copy_components
from bitsfusion.pipelines.folder import Component, Form
from bitsfusion.pipelines.resolve import resolve

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
DTYPE = "float16"
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def export_dense(model: str | Path, out: Path, dtype: str = DTYPE, progress: Progress | None = None) -> Exported:
    """Every packed layer unpacked, every component in one dtype: what `save_pretrained` of a dense pipeline writes.

    Layers are read, unpacked and written one at a time. A weight is the packed one's float32 product, rounded once.
    Where time features are stored, layers that give them take their place.

    Args:
        model: a packed pipeline or model folder, or its hub id.
        out: a new folder.
        dtype: of all floating weights.
        progress: is told of every packed layer.

    Raises:
        InputError: nothing packed, another dtype, a folder that is there, time layers that cannot be fitted.
        ArtifactError: a broken folder; names the layer.
        BitsFusionError: the disk.
    """
    check_choice("dtype", dtype, DTYPES)
    check_new_folder(out)
    source = resolve(model)
    packed = open_components(source.path)
    verify_folder(source.path)
    total, done = sum(len(folder.config.layers) for folder in packed.values()), 0
    tally = Tally()
    notes: list[str] = []

    def counted(tensors: Iterator[tuple[str, Tensor, bool]]) -> Iterator[tuple[str, Tensor]]:
        nonlocal done
        for name, tensor, is_layer in tensors:
            yield name, tensor
            done += is_layer
            if is_layer and progress is not None:
                progress(done, total)

    with atomic_folder(out) as temporary:
        if source.form is Form.PIPELINE:
            weighty = [component.name for component in source.components if component.weights is not None]
            copy_components(source, temporary, without=weighty)
        for component in source.components:
            if component.weights is None:
                continue
            place = temporary / component.name
            copy_all_but_weights(component, place)
            folder = packed.get(component.name)
            if folder is None:
                tensors = _dense(component, DTYPES[dtype], tally)
            else:
                _forget_packing(place / CONFIG_FILE)
                tensors = _unpacked(folder, DTYPES[dtype], tally, notes)
            with component_named(component.name):
                write_weights(place / _one_file(component), counted(tensors))
    return written(out, "dense", tally, notes)


def _unpacked(
    folder: PackedFolder, dtype: torch.dtype, tally: Tally, notes: list[str]
) -> Iterator[tuple[str, Tensor, bool]]:
    """Name and tensor of a packed model's dense form, and whether it was a packed layer."""
    with open_weights(folder) as weights:
        for layer in weights.layers():
            yield f"{layer.name}.weight", _cast(layer.weight, dtype, tally), True
        for name, tensor in weights.others.items():
            yield name, _cast(tensor, dtype, tally), False
        fitted = weights.time_layers(dtype)
        if fitted is not None:
            notes.append(f"{weights.time_note} (relative error {fitted.error:.1e})")
            for name, tensor in fitted.tensors.items():
                tally.add(f"{_named(dtype)}, fitted", tensor.numel(), tensor.nbytes, exact=False)
                yield name, tensor, False


def _dense(component: Component, dtype: torch.dtype, tally: Tally) -> Iterator[tuple[str, Tensor, bool]]:
    """The same of a model that was never packed."""
    assert component.weights is not None
    for path in component.weights.files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, _cast(file.get_tensor(name), dtype, tally), False


def _cast(tensor: Tensor, dtype: torch.dtype, tally: Tally) -> Tensor:
    made = tensor.to(dtype) if tensor.is_floating_point() else tensor
    tally.add(_named(made.dtype), made.numel(), made.nbytes, exact=torch.equal(made.to(tensor.dtype), tensor))
    return made


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _one_file(component: Component) -> str:
    """The name of the one file that holds the weights of all shards."""
    assert component.weights is not None
    return _SHARD.sub("", component.weights.plain_name(component.weights.files[0]))


def _forget_packing(config: Path) -> None:
    """Takes out of a config.json that the model is packed."""
    values = read_json(config)
    values.pop("quantization_config", None)
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
