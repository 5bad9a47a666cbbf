"""Writes a safetensors file whose tensors come one by one: none is kept in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from bitsfusion.artifact.tensors import tensor_bytes

_DTYPES = {  # in the order of their tensors in the file
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_METADATA = {"format": "pt"}
_ALIGNMENT = 8


def write_weights(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """The bytes that `safetensors.torch.save(tensors, {"format": "pt"})` makes, in whatever order the tensors come.

    The header comes first in the file and holds all sizes, so that data wait in a second file beside it, which is
    removed: twice the size on disk for a moment.

    Args:
        tensors: name and tensor of a dtype above, each name once.

    Raises:
        OSError: the disk.
    """
    spool = path.with_name(path.name + ".spool")
    entries: list[tuple[str, torch.dtype, list[int], int, int]] = []
    try:
        with open(spool, "w+b") as waiting:
            for name, tensor in tensors:
                data = tensor_bytes(tensor)
                entries.append((name, tensor.dtype, list(tensor.shape), waiting.tell(), len(data)))
                waiting.write(data)
            places = list(_DTYPES)
            entries.sort(key=lambda entry: (places.index(entry[1]), entry[0].encode()))
            with open(path, "wb") as file:
                file.write(header((name, dtype, shape, size) for name, dtype, shape, _, size in entries))
                for _, _, _, start, size in entries:
                    waiting.seek(start)
                    file.write(waiting.read(size))
    finally:
        spool.unlink(missing_ok=True)


def header(entries: Iterable[tuple[str, torch.dtype, list[int], int]]) -> bytes:
    """The start of a safetensors file: the length of its JSON, and the JSON.

    Args:
        entries: name, dtype, shape and bytes of each tensor, in the order of the file.
    """
    content: dict[str, object] = {"__metadata__": _METADATA}
    end = 0
    for name, dtype, shape, size in entries:
        content[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
