"""Entropy coding: packed bytes under zstd, one frame per layer, so that a file costs about its entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import zstandard

from bitsfusion.errors import ArtifactError
from bitsfusion.numerics.levels import half_levels, level_count
from bitsfusion.packing.layout import WIDE, level_table, symbols_per_byte

if TYPE_CHECKING:
    from torch import Tensor

_LEVELS = (1, 3, 19)  # which one is smallest depends on a layer's size and spread; none is slower to read
_ALL_LEVELS_BELOW = 1 << 17  # larger ones gain under 0.1 % and would take minutes
_MAGIC = b"\x28\xb5\x2f\xfd"
_WINDOW = 8 << 20  # what RFC 8878 asks every reader to manage
_CHUNK = 1 << 22


def compress(data: bytes | memoryview) -> bytes:
    """One zstd frame that declares its content size and carries neither checksum nor dictionary.

    The smallest over a few levels; deterministic for one zstd version.
    """
    levels = _LEVELS if len(data) < _ALL_LEVELS_BELOW else _LEVELS[:1]
    frames = (
        zstandard.ZstdCompressor(
            level=level, write_content_size=True, write_checksum=False, write_dict_id=False
        ).compress(data)
        for level in levels
    )
    return min(frames, key=len)


def decompress(blob: bytes | memoryview, expected_size: int) -> bytes:
    """The content of one zstd frame of exactly `expected_size` bytes; never allocates more than that.

    Raises:
        ArtifactError: not a zstd frame (a skippable one does not count), another size declared or found, a window
            beyond both 8 MiB and the content, a dictionary, a cut frame, bytes after the frame. The message does
            not name the layer: the caller does.
    """
    try:
        if bytes(blob[:4]) != _MAGIC:
            raise ArtifactError(f"got bytes that are no zstd frame, wanted {expected_size} bytes in one")
        declared = zstandard.get_frame_parameters(blob)
        if declared.content_size != expected_size:
            unknown = declared.content_size == zstandard.CONTENTSIZE_UNKNOWN
            got = "no size" if unknown else f"{declared.content_size} bytes"
            raise ArtifactError(f"got a zstd frame that declares {got}, wanted {expected_size} bytes")
        window = max(_WINDOW, expected_size)
        if declared.window_size > window:
            raise ArtifactError(f"got a zstd window of {declared.window_size} bytes, wanted at most {window}")
        if declared.dict_id:
            raise ArtifactError(f"got a zstd frame with dictionary {declared.dict_id}, wanted none")
        data = zstandard.ZstdDecompressor(max_window_size=window).decompress(blob, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"got a broken zstd frame ({error}), wanted {expected_size} bytes") from None
    if len(data) != expected_size:
        raise ArtifactError(f"got {len(data)} bytes under zstd, wanted {expected_size}")
    return data


def level_counts(packed: np.ndarray, numel: int, bits: int) -> np.ndarray:
    """How often each level occurs, from the packed bytes without unpacking them.

    Args:
        packed: uint8 [packed_size(numel, bits)].

    Returns:
        int64 [2^b + 1], counted from level -2^(b-1) up.
    """
    low = _histogram(packed[:numel] if bits == WIDE else packed)
    counts = np.zeros(level_count(bits), dtype=np.int64)
    if bits == WIDE:  # level +128 has a low byte of 0 and its bit in the plane
        plane = _histogram(packed[numel:])
        largest = int((plane * np.array([byte.bit_count() for byte in range(256)])).sum())
        counts[:256] = low
        counts[0] -= largest
        counts[256] = largest
        return counts
    symbols = level_table(bits).astype(np.int64) + half_levels(bits)
    for place in range(symbols_per_byte(bits)):
        np.add.at(counts, symbols[:, place], low)
    counts[half_levels(bits)] -= len(packed) * symbols_per_byte(bits) - numel  # unused places hold level 0
    return counts


def _histogram(data: np.ndarray) -> np.ndarray:
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(data), _CHUNK):
        counts += np.bincount(data[start : start + _CHUNK], minlength=256)
    return counts


def entropy_bits(codes: Tensor, bits: int) -> float:
    """The order-0 entropy of all of `codes` together, in bits: what an ideal coder of single levels needs.

    Args:
        codes: integers of any shape, from -2^(b-1) to 2^(b-1).
    """
    symbols = codes.flatten().long() + half_levels(bits)
    return counted_entropy(symbols.bincount(minlength=level_count(bits)).cpu().numpy())


def counted_entropy(counts: np.ndarray) -> float:
    """The same from `level_counts`."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum())
