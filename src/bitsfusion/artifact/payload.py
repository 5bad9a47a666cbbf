"""One layer on disk <-> its buffer in memory, each direction checked. The bytes are specified in docs/format.md.

All of it is numpy, so that looking at a folder needs no torch; `tensors` converts for those who load it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from bitsfusion.artifact.schema import PackedEntry
from bitsfusion.errors import ArtifactError
from bitsfusion.io.ahead import ahead
from bitsfusion.packing.accounting import SCALE_BYTES, LayerSize
from bitsfusion.packing.entropy import compress, decompress
from bitsfusion.packing.layout import check_range

THREADS = 4
"""Layers that are decoded at the same time; more wait for memory."""


def buffer_hash(buffer: np.ndarray) -> str:
    """The SHA-256 of a layer's buffer in memory, in hex: it does not depend on how well zstd did."""
    return hashlib.sha256(buffer.data).hexdigest()


def others_hash(others: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 over every tensor that is no packed layer.

    For each in the order of its name as UTF-8: the line "NAME DTYPE SHAPE\\n" (`torch.float32`, sizes joined by `x`),
    then the raw little-endian bytes.
    """
    digest = hashlib.sha256()
    for name, array in sorted(others.items(), key=lambda other: other[0].encode()):
        digest.update(f"{name} torch.{array.dtype} {'x'.join(str(size) for size in array.shape)}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def check_others(others: Mapping[str, np.ndarray], sha256: str) -> None:
    """Whether the tensors beside the packed layers are finite and those that were written.

    Raises:
        ArtifactError: names the tensor, where one alone can be blamed.
    """
    for name, array in others.items():
        if not np.isfinite(array).all():
            raise ArtifactError(f"{name}: got NaN or infinite values, wanted finite ones")
    got = others_hash(others)
    if got != sha256:
        raise ArtifactError(f"tensors beside the packed layers: got SHA-256 {got}, wanted {sha256}")


def encode_layer(buffer: np.ndarray, out_channels: int) -> bytes:
    """A layer's buffer as it goes to disk: [4 bytes: n][n bytes: zstd frame of the scales][zstd frame of the radix].

    The scales' frame holds their lowest bytes first, then their second bytes, and so on: signs and exponents, which
    differ little, lie together.

    Args:
        buffer: uint8 [4 * out + radix bytes], see `bitsfusion.nn.packed.packed_buffer`.
    """
    scales = SCALE_BYTES * out_channels
    frame = compress(buffer[:scales].reshape(out_channels, SCALE_BYTES).T.tobytes())
    return struct.pack("<I", len(frame)) + frame + compress(buffer[scales:].data)


def scale_frame_bytes(payload: np.ndarray) -> int:
    """How many bytes of a layer's tensor on disk are scales: their frame and its length."""
    return SCALE_BYTES + int.from_bytes(payload[:4].tobytes(), "little")


def decode_layer(name: str, payload: np.ndarray, entry: PackedEntry, buffer: np.ndarray | None = None) -> np.ndarray:
    """The inverse of `encode_layer`; allocates no more than the entry's shape asks for, twice.

    Args:
        name: of the layer, for the errors.
        payload: the tensor `<name>.packed` of the file.
        entry: what the config says of the layer.
        buffer: uint8 [4 * out + packed_size], written to; made where not given.

    Returns:
        `buffer`: the very bytes that were written.

    Raises:
        ArtifactError: names the layer and what is wrong: type, size, zstd frame, scales, range or hash.
    """
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise ArtifactError(f"{name}: got {payload.dtype} {list(payload.shape)}, wanted one-dimensional uint8")
    if buffer is None:
        buffer = np.empty(entry.size.bytes_in_memory, dtype=np.uint8)
    try:
        _decode(payload.data, entry.size, buffer)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None
    got = buffer_hash(buffer)
    if got != entry.sha256:
        raise ArtifactError(f"{name}: got weights of SHA-256 {got}, wanted {entry.sha256}")
    return buffer


def decode_layers(layers: Iterable[tuple[str, np.ndarray, PackedEntry]]) -> Iterator[tuple[str, np.ndarray]]:
    """`decode_layer` for many layers, in their order, a few at a time on threads.

    Args:
        layers: name, payload and entry of each; read as far ahead as there are threads, so that only so many
            are in memory at a time.

    Returns:
        (name, buffer) of each.
    """
    return ahead(lambda layer: (layer[0], decode_layer(*layer)), layers, THREADS)


def check_scales(scales: np.ndarray, bits: int) -> None:
    """Whether every weight that the scales can produce is a finite float32.

    Args:
        scales: [out] float32.
        bits: b; the largest level is 2^(b-1).

    Raises:
        ArtifactError: a scale that is not finite, or that overflows when it is multiplied by the largest level.
    """
    if not np.isfinite(scales).all():
        raise ArtifactError("got a scale that is NaN or infinite, wanted finite scales")
    with np.errstate(over="ignore"):
        largest = scales * np.float32(2 ** (bits - 1))
    if not np.isfinite(largest).all():
        raise ArtifactError(f"got a scale that overflows at level {2 ** (bits - 1)}, wanted finite weights")


def _decode(data: memoryview, size: LayerSize, buffer: np.ndarray) -> None:
    end = 4 + int.from_bytes(data[:4], "little")
    if len(data) < 4 or len(data) <= end:
        raise ArtifactError(f"got {len(data)} bytes, wanted more than the length and the {end - 4} bytes of the scales")
    planes = np.frombuffer(decompress(data[4:end], size.scale_bytes), dtype=np.uint8)
    radix = decompress(data[end:], size.code_bytes)
    scales, codes = buffer[: size.scale_bytes], buffer[size.scale_bytes :]
    scales.reshape(size.out_channels, SCALE_BYTES)[:] = planes.reshape(SCALE_BYTES, size.out_channels).T
    codes[:] = np.frombuffer(radix, dtype=np.uint8)
    check_scales(scales.view(np.float32), size.bits)
    check_range(codes, size.weights, size.bits)
