"""Tensors as the arrays that `payload` works on, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from bitsfusion.artifact import payload
from bitsfusion.artifact.schema import PackedEntry
from bitsfusion.errors import ArtifactError
from bitsfusion.io.ahead import ahead


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's raw little-endian bytes, of any dtype."""
    return as_array("tensor", tensor.detach().cpu().contiguous().flatten().view(torch.uint8)).tobytes()


def as_array(name: str, tensor: Tensor) -> np.ndarray:
    """A tensor on the CPU as an array of the same shape, without a copy where it lies there in one piece.

    Raises:
        ArtifactError: a dtype that numpy lacks, which no packed folder holds; says `name`.
    """
    try:
        array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    except TypeError:
        raise ArtifactError(f"{name}: got {tensor.dtype}, wanted uint8, float16 or float32") from None
    return array


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """`as_array` of each."""
    return {name: as_array(name, tensor) for name, tensor in tensors.items()}


def encode_layer(buffer: Tensor, out_channels: int) -> Tensor:
    """See `payload.encode_layer`; uint8 [n]."""
    encoded = payload.encode_layer(as_array("buffer", buffer), out_channels)
    return torch.frombuffer(bytearray(encoded), dtype=torch.uint8)


def decode_layers(layers: Iterable[tuple[str, Tensor, PackedEntry]]) -> Iterator[tuple[str, Tensor]]:
    """See `payload.decode_layers`; buffers are on the CPU."""

    def work(layer: tuple[str, Tensor, PackedEntry]) -> tuple[str, Tensor]:
        name, stored, entry = layer
        buffer = torch.empty(entry.size.bytes_in_memory, dtype=torch.uint8)  # aligned as torch has it
        payload.decode_layer(name, as_array(name, stored), entry, buffer.numpy())
        return name, buffer

    return ahead(work, layers, payload.THREADS)
