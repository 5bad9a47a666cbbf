"""Is a packed folder whole? Names, shapes, ranges and hashes, from the files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bitsfusion.artifact.payload import check_others
from bitsfusion.artifact.reader import PackedFolder, Tensors, component_named, open_components
from bitsfusion.artifact.schema import PACKED_SUFFIX, TIME_TENSORS, PackedConfig
from bitsfusion.errors import ArtifactError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def verify_folder(path: Path | str) -> None:
    """Checks a packed model or pipeline folder; returns where all is well.

    In this order: the config against its schema, the config against the model's own shapes, the names in the files,
    every other tensor's type and shape, each layer's size, scales, zstd frame, range and hash, the other tensors'
    values and hash. A few layers are in memory at a time, and never more of one than its shape asks for.

    Of a pipeline folder every packed component is checked; the others are not.

    Raises:
        InputError: no packed folder.
        ArtifactError: the first thing that is wrong, with the component's (but the UNet's) and the layer's name.
    """
    for name, folder in open_components(path).items():
        with component_named(name):
            _verify(folder)


def _verify(folder: PackedFolder) -> None:
    expected = folder.expected()
    for file in sorted(folder.path.iterdir()):
        if file.suffix in _PICKLES:
            raise ArtifactError(f"{file}: got a file that may be a pickle, wanted safetensors files alone")
    with folder.tensors() as tensors:
        check_tensors(folder.config, expected, tensors)


def check_tensors(config: PackedConfig, expected: Mapping[str, Tensor], tensors: Tensors) -> None:
    """The part of `verify_folder` that reads the weight files.

    Args:
        expected: see `PackedFolder.expected`.

    Raises:
        ArtifactError: the first thing that is wrong.
    """
    check_stored(expected, tensors)
    for _ in tensors.buffers():
        pass
    others = {name: tensors.tensor(name) for name in expected if not name.endswith(PACKED_SUFFIX)}
    check_others(others, config.others_sha256)


def check_stored(expected: Mapping[str, Tensor], tensors: Tensors) -> None:
    """Names, dtypes and shapes by the files' headers alone.

    Raises:
        ArtifactError: names the layer or tensor.
    """
    for name in sorted(expected.keys() ^ tensors.stored.keys()):
        missing = f"got no tensor {name} in the file"
        surplus = f"got a tensor {name} that the model does not have"
        raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: {missing if name in expected else surplus}")
    for name, stored in tensors.stored.items():
        shape = list(expected[name].shape)
        if name.endswith(PACKED_SUFFIX):
            if stored.dtype != "U8" or len(stored.shape) != 1:
                layer = name.removesuffix(PACKED_SUFFIX)
                raise ArtifactError(f"{layer}: got {stored.dtype} {list(stored.shape)}, wanted one-dimensional U8")
            continue
        dtype = "F16" if name in TIME_TENSORS else "F32"
        if stored.dtype != dtype or list(stored.shape) != shape:
            raise ArtifactError(f"{name}: got {stored.dtype} {list(stored.shape)}, wanted {dtype} {shape}")
