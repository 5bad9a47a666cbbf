"""Is a packed folder whole? Names, shapes, ranges and hashes, from the files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitsfusion.artifact.payload import buffer_hash, others_hash
from bitsfusion.artifact.reader import Tensors, open_folder
from bitsfusion.artifact.schema import PACKED_SUFFIX, ROWS_TENSOR, PackedConfig
from bitsfusion.artifact.skeleton import empty_model, make_packed
from bitsfusion.errors import ArtifactError


def verify_folder(path: Path | str) -> None:
    """Checks a packed model or pipeline folder; returns where all is well.

    In this order: the config against its schema, the config against the model's own shapes, the names in the file,
    each layer's size, scales, zstd frame, range and hash, every other tensor's type, shape and values, their hash.
    At most one layer is in memory at a time, and never more of it than its shape asks for.

    Raises:
        InputError: no packed folder.
        ArtifactError: the first thing that is wrong, with the layer's name.
    """
    folder = open_folder(path)
    model = empty_model(folder.model_config)
    make_packed(model, folder.config)
    expected = model.state_dict()
    with folder.tensors() as tensors:
        _check_names(set(tensors.names), set(expected))
        for name, entry in folder.config.layers.items():
            got = buffer_hash(tensors.buffer(name))
            if got != entry.sha256:
                raise ArtifactError(f"{name}: got weights of SHA-256 {got}, wanted {entry.sha256}")
        _check_others(tensors, expected, folder.config)


def _check_names(found: set[str], expected: set[str]) -> None:
    for name in sorted(expected - found):
        raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: got no tensor {name} in the file")
    for name in sorted(found - expected):
        raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: got a tensor {name} that the model does not have")


def _check_others(tensors: Tensors, expected: Mapping[str, Tensor], config: PackedConfig) -> None:
    others = {name: tensors.stored(name) for name in expected if not name.endswith(PACKED_SUFFIX)}
    for name, tensor in others.items():
        dtype = torch.float16 if name == ROWS_TENSOR else torch.float32
        if tensor.dtype != dtype or tensor.shape != expected[name].shape:
            wanted = f"{dtype} {list(expected[name].shape)}"
            raise ArtifactError(f"{name}: got {tensor.dtype} {list(tensor.shape)}, wanted {wanted}")
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{name}: got NaN or infinite values, wanted finite ones")
    got = others_hash(others)
    if got != config.others_sha256:
        raise ArtifactError(f"tensors beside the packed layers: got SHA-256 {got}, wanted {config.others_sha256}")
