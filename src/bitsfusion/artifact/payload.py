"""One layer on disk <-> its buffer in memory, each direction checked. The bytes are specified in docs/format.md."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from bitsfusion.artifact.schema import PACKED_SUFFIX, PackedEntry
from bitsfusion.errors import ArtifactError
from bitsfusion.io.ahead import ahead
from bitsfusion.packing.accounting import SCALE_BYTES, LayerSize
from bitsfusion.packing.entropy import compress, decompress
from bitsfusion.packing.radix import check_range

_THREADS = 4  # more wait for memory


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's raw little-endian bytes."""
    return _view(tensor).tobytes()


def _view(tensor: Tensor) -> memoryview:
    """The same without a copy, where the tensor lies in one piece on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def buffer_hash(buffer: Tensor) -> str:
    """The SHA-256 of a layer's buffer in memory, in hex: it does not depend on how well zstd did."""
    return hashlib.sha256(_view(buffer)).hexdigest()


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
            digest.update(_view(tensor))
    return digest.hexdigest()


def check_others(tensors: Mapping[str, Tensor], sha256: str) -> None:
    """Whether the tensors beside the packed layers are finite and those that were written.

    Raises:
        ArtifactError: names the tensor, where one alone can be blamed.
    """
    for name, tensor in tensors.items():
        if not name.endswith(PACKED_SUFFIX) and not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{name}: got NaN or infinite values, wanted finite ones")
    got = others_hash(tensors)
    if got != sha256:
        raise ArtifactError(f"tensors beside the packed layers: got SHA-256 {got}, wanted {sha256}")


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
    stored = struct.pack("<I", len(frame)) + frame + compress(_view(buffer[scales:]))
    return torch.frombuffer(bytearray(stored), dtype=torch.uint8)


def scale_frame_bytes(payload: Tensor) -> int:
    """How many bytes of a layer's tensor on disk are scales: their frame and its length."""
    return SCALE_BYTES + int.from_bytes(tensor_bytes(payload[:4]), "little")


def decode_layer(name: str, payload: Tensor, entry: PackedEntry) -> Tensor:
    """The inverse of `encode_layer`; allocates no more than the entry's shape asks for, twice.

    Args:
        name: of the layer, for the errors.
        payload: the tensor `<name>.packed` of the file.
        entry: what the config says of the layer.

    Returns:
        uint8 [4 * out + packed_size], the very bytes that were written.

    Raises:
        ArtifactError: names the layer and what is wrong: type, size, zstd frame, scales, range or hash.
    """
    if payload.dtype != torch.uint8 or payload.dim() != 1:
        raise ArtifactError(f"{name}: got {payload.dtype} {list(payload.shape)}, wanted one-dimensional torch.uint8")
    try:
        buffer = _decode(_view(payload), entry.size)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None
    got = buffer_hash(buffer)
    if got != entry.sha256:
        raise ArtifactError(f"{name}: got weights of SHA-256 {got}, wanted {entry.sha256}")
    return buffer


def decode_layers(layers: Iterable[tuple[str, Tensor, PackedEntry]]) -> Iterator[tuple[str, Tensor]]:
    """`decode_layer` for many layers, in their order, a few at a time on threads.

    Args:
        layers: name, payload and entry of each; read as far ahead as there are threads, so that only so many
            are in memory at a time.

    Returns:
        (name, buffer) of each.
    """
    return ahead(lambda layer: (layer[0], decode_layer(*layer)), layers, _THREADS)


def check_scales(scales: Tensor, bits: int) -> None:
    """Whether every weight that the scales can stand for is a finite float32.

    Args:
        scales: [out] float32.
        bits: b; the largest level is 2^(b-1).

    Raises:
        ArtifactError: a scale that is not finite, or that overflows when it is multiplied by the largest level.
    """
    if not bool(torch.isfinite(scales).all()):
        raise ArtifactError("got a scale that is NaN or infinite, wanted finite scales")
    if not bool(torch.isfinite(scales * 2 ** (bits - 1)).all()):
        raise ArtifactError(f"got a scale that overflows at level {2 ** (bits - 1)}, wanted finite weights")


def _decode(data: memoryview, size: LayerSize) -> Tensor:
    end = 4 + int.from_bytes(data[:4], "little")
    if len(data) < 4 or len(data) <= end:
        raise ArtifactError(f"got {len(data)} bytes, wanted more than the length and the {end - 4} bytes of the scales")
    planes = np.frombuffer(decompress(data[4:end], size.scale_bytes), dtype=np.uint8)
    radix = decompress(data[end:], size.code_bytes)
    buffer = torch.empty(size.bytes_in_memory, dtype=torch.uint8)
    scales, codes = buffer[: size.scale_bytes], buffer[size.scale_bytes :]
    scales.view(size.out_channels, SCALE_BYTES).numpy()[:] = planes.reshape(SCALE_BYTES, size.out_channels).T
    codes.numpy()[:] = np.frombuffer(radix, dtype=np.uint8)
    check_scales(scales.view(torch.float32), size.bits)
    check_range(codes, size.weights, size.bits)
    return buffer
