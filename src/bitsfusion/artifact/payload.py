"""One layer on disk <-> its buffer in memory, each direction checked. The bytes are specified in docs/format.md."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from bitsfusion.artifact.schema import PACKED_SUFFIX, PackedEntry
from bitsfusion.errors import ArtifactError
from bitsfusion.packing.accounting import SCALE_BYTES, LayerSize
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
    """A layer's buffer as it goes to disk: [4 bytes: n][n bytes: zstd frame of the scales][zstd frame of the radix].

    The scales' frame holds their lowest bytes first, then their second bytes, and so on: signs and exponents, which
    differ little, lie together.

    Args:
        buffer: uint8 [4 * out + radix bytes], see `bitsfusion.nn.packed.packed_buffer`.

    Returns:
        uint8, 1-D.
    """
    scales = SCALE_BYTES * out_channels
    planes = buffer[:scales].cpu().view(out_channels, SCALE_BYTES).T
    frame = compress(tensor_bytes(planes))
    stored = struct.pack("<I", len(frame)) + frame + compress(tensor_bytes(buffer[scales:]))
    return torch.frombuffer(bytearray(stored), dtype=torch.uint8)


def scale_frame_bytes(payload: Tensor) -> int:
    """How many bytes of a layer's tensor on disk are scales: their frame and its length."""
    return SCALE_BYTES + int.from_bytes(tensor_bytes(payload[:4]), "little")


def decode_layer(name: str, payload: Tensor, entry: PackedEntry) -> Tensor:
    """The inverse of `encode_layer`; allocates no more than the entry's shape asks for.

    Args:
        name: of the layer, for the errors.
        payload: the tensor `<name>.packed` of the file.
        entry: what the config says of the layer.

    Returns:
        uint8 [4 * out + packed_size].

    Raises:
        ArtifactError: names the layer and what is wrong: type, size, zstd frame, scales or range.
    """
    if payload.dtype != torch.uint8 or payload.dim() != 1:
        raise ArtifactError(f"{name}: got {payload.dtype} {list(payload.shape)}, wanted one-dimensional torch.uint8")
    try:
        return _decode(tensor_bytes(payload), entry.size)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None


def _decode(data: bytes, size: LayerSize) -> Tensor:
    end = 4 + int.from_bytes(data[:4], "little")
    if len(data) < 4 or len(data) <= end:
        raise ArtifactError(f"got {len(data)} bytes, wanted more than the length and the {end - 4} bytes of the scales")
    planes = torch.frombuffer(bytearray(decompress(data[4:end], size.scale_bytes)), dtype=torch.uint8)
    radix = torch.frombuffer(bytearray(decompress(data[end:], size.code_bytes)), dtype=torch.uint8)
    scales = planes.view(SCALE_BYTES, size.out_channels).T.flatten()
    if not bool(torch.isfinite(scales.view(torch.float32)).all()):
        raise ArtifactError("got a scale that is NaN or infinite, wanted finite scales")
    check_range(radix, size.weights, size.bits)
    return torch.cat([scales, radix])
