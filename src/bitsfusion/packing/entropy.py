"""The last few per cent: packed bytes under zstd, one frame a layer, so that a file costs about its entropy."""

from __future__ import annotations

import torch
import zstandard
from torch import Tensor

from bitsfusion.errors import ArtifactError
from bitsfusion.numerics import half_levels, level_count

_LEVELS = (1, 3, 19)  # which one is smallest depends on a layer's size and spread; none is slower to read
_ALL_LEVELS_BELOW = 1 << 17  # larger ones gain under 0.1 % and would take minutes


def compress(data: bytes) -> bytes:
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


def decompress(blob: bytes, expected_size: int) -> bytes:
    """The content of one zstd frame of exactly `expected_size` bytes; never allocates more than that.

    Raises:
        ArtifactError: no zstd frame, another size declared or found, a cut frame, bytes after the frame. The
            message does not name the layer: the caller does.
    """
    try:
        declared = zstandard.get_frame_parameters(blob).content_size
        if declared != expected_size:
            got = "no size" if declared == zstandard.CONTENTSIZE_UNKNOWN else f"{declared} bytes"
            raise ArtifactError(f"got a zstd frame that declares {got}, wanted {expected_size} bytes")
        data = zstandard.ZstdDecompressor().decompress(blob, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"got a broken zstd frame ({error}), wanted {expected_size} bytes") from None
    if len(data) != expected_size:
        raise ArtifactError(f"got {len(data)} bytes under zstd, wanted {expected_size}")
    return data


def entropy_bits(codes: Tensor, bits: int) -> float:
    """The order-0 entropy of all of `codes` together, in bits: what an ideal coder of single levels needs.

    Args:
        codes: integers of any shape, from -2^(b-1) to 2^(b-1).
    """
    counts = torch.bincount(codes.flatten().long() + half_levels(bits), minlength=level_count(bits)).double()
    used = counts[counts > 0]
    return float((used * (counts.sum() / used).log2()).sum())
