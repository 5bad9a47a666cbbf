"""`payload` for tensors: what packing, loading and saving do with a layer's bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from bitsfusion.artifact import payload
from bitsfusion.artifact.schema import PACKED_SUFFIX, PackedEntry
from bitsfusion.io.ahead import ahead


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's raw little-endian bytes."""
    return _bytes(tensor).tobytes()


def _bytes(tensor: Tensor) -> np.ndarray:
    """The same as uint8 [n], without a copy where the tensor lies in one piece on the CPU."""
    array: np.ndarray = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return array


def buffer_hash(buffer: Tensor) -> str:
    """See `payload.buffer_hash`."""
    return payload.buffer_hash(_bytes(buffer))


def others_hash(tensors: Mapping[str, Tensor]) -> str:
    """See `payload.others_hash`; packed layers are passed over."""
    return payload.others_hash(
        (name, str(tensor.dtype), tensor.shape, _bytes(tensor).data)
        for name, tensor in tensors.items()
        if not name.endswith(PACKED_SUFFIX)
    )


def check_others(tensors: Mapping[str, Tensor], sha256: str) -> None:
    """See `payload.check_others`; packed layers are passed over."""
    for name, tensor in tensors.items():
        payload.check_finite(name, name.endswith(PACKED_SUFFIX) or bool(torch.isfinite(tensor).all()))
    payload.check_hash(others_hash(tensors), sha256)


def check_scales(scales: Tensor, bits: int) -> None:
    """See `payload.check_scales`."""
    payload.check_scales(scales.cpu().numpy(), bits)


def encode_layer(buffer: Tensor, out_channels: int) -> Tensor:
    """See `payload.encode_layer`; uint8 [n]."""
    return torch.frombuffer(bytearray(payload.encode_layer(_bytes(buffer), out_channels)), dtype=torch.uint8)


def decode_layers(layers: Iterable[tuple[str, Tensor, PackedEntry]]) -> Iterator[tuple[str, Tensor]]:
    """See `payload.decode_layers`; buffers are on the CPU."""

    def work(layer: tuple[str, Tensor, PackedEntry]) -> tuple[str, Tensor]:
        name, stored, entry = layer
        payload.check_payload(name, str(stored.dtype).removeprefix("torch."), stored.shape)
        buffer = torch.empty(entry.size.bytes_in_memory, dtype=torch.uint8)  # aligned as torch has it
        payload.decode_layer(name, stored.detach().cpu().numpy(), entry, buffer.numpy())
        return name, buffer

    return ahead(work, layers, payload.THREADS)
