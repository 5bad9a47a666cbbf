"""One layer on disk <-> its buffer in memory, each direction checked. The bytes are specified in docs/format.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from bitsfusion.artifact.schema import PACKED_SUFFIX, PackedEntry
from bitsfusion.errors import ArtifactError
from bitsfusion.packing.accounting import LayerSize
from bitsfusion.packing.entropy import compress, decompress
from bitsfusion.packing.radix import check_range


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's raw little-endian bytes."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def buffer_hash(buffer: Tensor) -> str:
    """The SHA-256 of a layer's buffer in memory, in hex: it does not depend on how well zstd did."""
    return hashlib.sha256(tensor_bytes(buffer)).hexdigest()


def others_hash(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 over every tensor whose name does not end in `.packed`.

    For each in the order of its name as UTF-8: the line "NAME DTYPE SHAPE\\n" (`torch.float32`, sizes joined by `x`),
    then the raw little-endian bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors, key=str.encode):
        if not name.endswith(PACKED_SUFFIX):
            tensor = tensors[name]
            digest.update(f"{name} {tensor.dtype} {'x'.join(str(size) for size in tensor.shape)}\n".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def encode_layer(buffer: Tensor, out_channels: int) -> Tensor:
    """A layer's buffer as it goes to disk: [4 * out bytes of scales as they are][one zstd frame of the radix bytes].

    Args:
        buffer: uint8 [4 * out + radix bytes], see `bitsfusion.nn.packed.packed_buffer`.

    Returns:
        uint8, 1-D.
    """
    scales = LayerSize(1, 0, out_channels).scale_bytes
    data = tensor_bytes(buffer)
    return torch.frombuffer(bytearray(data[:scales] + compress(data[scales:])), dtype=torch.uint8)


def decode_layer(name: str, payload: Tensor, entry: PackedEntry) -> Tensor:
    """The inverse of `encode_layer`; allocates no more than the entry's shape asks for.

    Args:
        name: of the layer, for the errors.
        payload: the tensor `<name>.packed` of the file.
        entry: what the config says of the layer.

    Returns:
        uint8 [4 * out + packed_size].

    Raises:
        ArtifactError: names the layer and what is wrong: type, size, scales, zstd frame or range.
    """
    size = entry.size
    if payload.dtype != torch.uint8 or payload.dim() != 1:
        raise ArtifactError(f"{name}: got {payload.dtype} {list(payload.shape)}, wanted one-dimensional torch.uint8")
    if payload.numel() <= size.scale_bytes:
        raise ArtifactError(
            f"{name}: got {payload.numel()} bytes, wanted more than the {size.scale_bytes} of its scales"
        )
    data = tensor_bytes(payload)
    try:
        radix = decompress(data[size.scale_bytes :], size.code_bytes)
        buffer = torch.frombuffer(bytearray(data[: size.scale_bytes] + radix), dtype=torch.uint8)
        check_range(buffer[size.scale_bytes :], size.weights, entry.bits)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None
    if not bool(torch.isfinite(buffer[: size.scale_bytes].view(torch.float32)).all()):
        raise ArtifactError(f"{name}: got a scale that is NaN or infinite, wanted finite scales")
    return buffer
