"""The files around the tensors, read strictly: JSON objects and the header of a safetensors file.

Other readers are lenient (of two equal keys, say, the last one wins). What is verified here must be what every reader
sees, so ambiguous files are refused.
"""

from __future__ import annotations

import json
import math
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bitsfusion.artifact.limits import JSON_BYTES, shown
from bitsfusion.errors import ArtifactError
from bitsfusion.io.texts import POINTER, is_pointer

NAME = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
NAME_LENGTH = 256
_ITEM_BYTES = {"U8": 1, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header describes it: its dtype in safetensors' spelling, its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        ArtifactError: no regular file, a git-lfs pointer, too long, not UTF-8, not JSON, a key twice, NaN, or no
            object.
    """
    size = _regular_size(path)
    if size > JSON_BYTES:
        raise ArtifactError(f"{path}: got {size} bytes, wanted at most {JSON_BYTES}")
    try:
        data = path.read_bytes()
        if is_pointer(data):
            raise ArtifactError(f"{path}: {POINTER}")
        return parse_object(data)
    except OSError as error:
        raise ArtifactError(f"{path}: got {shown(error)}, wanted a JSON object") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: got {error}, wanted a JSON object") from None


def parse_object(data: bytes) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ValueError: of one line.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(shown(error)) from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} twice")
        values[key] = value
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, in the order of their bytes, from its header alone.

    Raises:
        ArtifactError: no such file, a length or JSON that lies, or a tensor (named) of an odd name or dtype, of
            another size than its shape asks for, or that overlaps another or leaves a hole.
    """
    size = _regular_size(path)
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if start == b"version " and size < JSON_BYTES:
                raise ArtifactError(f"{path}: {POINTER}")
            if not 0 < length <= min(size - 8, JSON_BYTES):
                raise ArtifactError(
                    f"{path}: got a header of {length} bytes in a file of {size} (at most {JSON_BYTES} are read), "
                    "wanted a safetensors file"
                )
            data = file.read(length)
    except OSError as error:
        raise ArtifactError(f"{path}: got {error.strerror}, wanted a safetensors file") from None
    try:
        if data[:1] != b"{":
            raise ValueError("a header that is no JSON object")
        entries = parse_object(data)
    except ValueError as error:
        raise ArtifactError(f"{path}: got {error} in its header, wanted a safetensors file") from None
    notes = entries.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ArtifactError(f"{path}: got __metadata__ that is no object of strings, wanted a safetensors file")
    return _in_order(path, {name: _entry(name, value) for name, value in entries.items()}, size - 8 - length)


def _entry(name: str, value: Any) -> tuple[int, StoredTensor]:
    """Where a tensor begins, and what it is."""
    check_name(name)
    if not isinstance(value, Mapping) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"{name}: got an odd entry in the header, wanted dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ArtifactError(f"{name}: got dtype {shown(repr(dtype), 40)}, wanted one of {', '.join(_ITEM_BYTES)}")
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2):
        raise ArtifactError(f"{name}: got a shape or offsets in the header that are no lists of natural numbers")
    nbytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise ArtifactError(f"{name}: got other offsets in the header than {dtype} {shown(shape, 80)} asks for")
    return offsets[0], StoredTensor(dtype, tuple(shape), nbytes)


def check_name(name: str) -> None:
    """Refuses names that no tensor has.

    Raises:
        ArtifactError: says the name, printable.
    """
    if len(name) > NAME_LENGTH or re.fullmatch(NAME, name) is None:
        raise ArtifactError(f"{shown(repr(name), 80)}: got an odd name, wanted letters, digits and _ between dots")


def _naturals(value: Any) -> bool:
    """A short list of integers of at most 63 bits, none negative."""
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _in_order(path: Path, entries: Mapping[str, tuple[int, StoredTensor]], size: int) -> dict[str, StoredTensor]:
    end = 0
    tensors: dict[str, StoredTensor] = {}
    for name, (start, tensor) in sorted(entries.items(), key=lambda item: (item[1][0], item[1][1].nbytes)):
        if start != end:
            raise ArtifactError(f"{name}: got byte {start} as its first, wanted {end}, where the one before ends")
        end += tensor.nbytes
        tensors[name] = tensor
    if end != size:
        raise ArtifactError(f"{path}: got {size} bytes after the header, wanted {end}: wanted a safetensors file")
    return tensors


def _regular_size(path: Path) -> int:
    """Links are followed (the hub's cache is made of them); pipes and devices are not files."""
    try:
        status = path.stat()
    except OSError as error:
        raise ArtifactError(f"{path}: got {error.strerror}, wanted this file") from None
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path}: got no regular file, wanted one")
    return status.st_size
