"""The entropy coder: round trips, nearness to the entropy, and frames that lie."""

import math

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsfusion.errors import ArtifactError
from bitsfusion.numerics import initial_scale, level_bits, quantize
from bitsfusion.packing.entropy import compress, counted_entropy, decompress, entropy_bits, level_counts
from bitsfusion.packing.radix import pack


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300))
def test_round_trip(data: bytes) -> None:
    assert decompress(compress(data), len(data)) == data


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_near_the_entropy_of_gaussian_weights(bits: int) -> None:
    weight = torch.randn(256, 1152, generator=torch.Generator().manual_seed(0))
    codes = quantize(weight, initial_scale(weight, bits), bits)
    bound = entropy_bits(codes, bits)
    assert bound / weight.numel() < level_bits(bits)
    size = 8 * len(compress(pack(codes, bits).numpy().tobytes()))
    assert size < 1.015 * bound


def test_entropy_of_known_counts() -> None:
    assert entropy_bits(torch.tensor([-1, 0, 0, 1]), 1) == pytest.approx(6)
    assert entropy_bits(torch.zeros(9), 1) == 0
    assert entropy_bits(torch.tensor([-1, 0, 1]), 1) == pytest.approx(3 * math.log2(3))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 2, 7, 1001])
def test_levels_are_counted_without_unpacking(bits: int, count: int) -> None:
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half + 1, (count,), generator=torch.Generator().manual_seed(count))
    codes[0] = half
    counts = level_counts(pack(codes, bits).numpy(), count, bits)
    assert counts.tolist() == [int((codes == level).sum()) for level in range(-half, half + 1)]
    assert counted_entropy(counts) == pytest.approx(entropy_bits(codes, bits))


def by_hand(content: bytes, window: int = 0, dictionary: bytes = b"") -> bytes:
    """A zstd frame of one raw block (RFC 8878): its window is 2^(10 + window / 8)."""
    descriptor = bytes([0b10000000 | len(dictionary)])  # four bytes of content size, no single segment
    header = b"\x28\xb5\x2f\xfd" + descriptor + bytes([window]) + dictionary + len(content).to_bytes(4, "little")
    return header + (len(content) << 3 | 1).to_bytes(3, "little") + content


def test_a_frame_by_hand_is_read() -> None:
    assert decompress(by_hand(b"hello"), 5) == b"hello"


@pytest.mark.parametrize("window", [112, 160, 240])
def test_a_large_window_is_refused(window: int) -> None:
    with pytest.raises(ArtifactError, match=r"zstd (window of|frame)"):
        decompress(by_hand(b"hello", window), 5)


def test_a_dictionary_is_refused() -> None:
    with pytest.raises(ArtifactError, match="zstd frame with dictionary 7, wanted none"):
        decompress(by_hand(b"hello", dictionary=b"\x07"), 5)


SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"


@pytest.mark.parametrize(
    "blob",
    [SKIPPABLE, SKIPPABLE + compress(b"hello"), compress(b"hello") + SKIPPABLE, 2 * compress(b"hello"), b"", b"hello"],
)
def test_one_frame_and_nothing_else(blob: bytes) -> None:
    with pytest.raises(ArtifactError, match="zstd frame"):
        decompress(blob, 5)


def test_bomb_is_refused_by_its_declared_size() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(ArtifactError, match="declares 67108864 bytes, wanted 10"):
        decompress(bomb, 10)


def test_frame_without_a_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(ArtifactError, match="declares no size"):
        decompress(frame, 100)


def test_frame_that_holds_more_than_it_declares() -> None:
    frame = bytearray(compress(bytes(200)))
    assert frame[5] == 200
    frame[5] = 100
    with pytest.raises(ArtifactError, match="broken zstd frame"):
        decompress(bytes(frame), 100)


@pytest.mark.parametrize("cut", [0, 3, 5, 6, -1])
def test_cut_frames(cut: int) -> None:
    frame = compress(bytes(range(200)))
    with pytest.raises(ArtifactError):
        decompress(frame[:cut], 200)


def test_bytes_after_the_frame() -> None:
    with pytest.raises(ArtifactError, match="broken zstd frame"):
        decompress(compress(b"abc") + b"x", 3)
