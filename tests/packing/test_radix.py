"""Radix packing: sizes, round trips, goldens and bytes that no writer makes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsfusion.errors import ArtifactError
from bitsfusion.packing.layout import check_range, packed_size
from bitsfusion.packing.radix import pack, unpack, unpack_at

ALL_BITS = range(1, 9)


@settings(max_examples=120, deadline=None)
@given(bits=st.sampled_from(ALL_BITS), numel=st.integers(0, 67), seed=st.integers(0, 2**16))
def test_round_trip(bits: int, numel: int, seed: int) -> None:
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half + 1, (numel,), generator=torch.Generator().manual_seed(seed), dtype=torch.int16)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (packed_size(numel, bits),)
    check_range(packed.numpy(), numel, bits)
    assert torch.equal(unpack(packed, numel, bits), codes)
    places = torch.randperm(numel, generator=torch.Generator().manual_seed(seed)).view(1, -1)
    assert torch.equal(unpack_at(packed, numel, bits, places), codes[places])


@pytest.mark.parametrize("bits", ALL_BITS)
def test_extremes_round_trip_in_any_shape(bits: int) -> None:
    half = 2 ** (bits - 1)
    codes = torch.tensor([-half, 0, half, half, -half, 0, half], dtype=torch.int16).view(7, 1, 1)
    assert torch.equal(unpack(pack(codes, bits), 7, bits), codes.flatten())


@pytest.mark.parametrize(
    ("bits", "sizes"),
    [
        (1, {1: 1, 5: 1, 6: 2, 101: 21}),
        (2, {1: 1, 3: 1, 4: 2, 101: 34}),
        (3, {1: 1, 2: 1, 3: 2, 101: 51}),
        (4, {1: 1, 101: 101}),
        (7, {1: 1, 101: 101}),
        (8, {1: 2, 8: 9, 9: 11, 101: 114}),
    ],
)
def test_sizes(bits: int, sizes: dict[int, int]) -> None:
    assert {numel: packed_size(numel, bits) for numel in sizes} == sizes


@pytest.mark.parametrize(
    ("bits", "codes", "golden"),
    [
        (1, [-1, 0, 1, 1, 1, -1], [0 + 3 + 18 + 54 + 162, 0 + 3 + 9 + 27 + 81]),
        (2, [-2, 2, 1, 0], [0 + 20 + 75, 2 + 10 + 50]),
        (3, [-4, 4, 0], [0 + 72, 4 + 36]),
        (4, [-8, 8], [0, 16]),
        (7, [-64, 64], [0, 128]),
        (8, [-128, 127, 128, 0], [0, 255, 0, 128, 0b100]),
    ],
)
def test_golden_bytes(bits: int, codes: list[int], golden: list[int]) -> None:
    assert pack(torch.tensor(codes), bits).tolist() == golden


@pytest.mark.parametrize(("bits", "byte"), [(1, 243), (2, 125), (3, 81), (4, 17), (5, 33), (6, 65), (7, 129)])
def test_bytes_out_of_range(bits: int, byte: int) -> None:
    packed = pack(torch.zeros(10), bits)
    packed[0] = byte - 1
    check_range(packed.numpy(), 10, bits)
    packed[0] = byte
    with pytest.raises(ArtifactError, match=f"byte of {byte}"):
        check_range(packed.numpy(), 10, bits)


def test_ninth_bit_beside_low_bits() -> None:
    packed = pack(torch.zeros(10), 8)
    packed[10] = 1
    with pytest.raises(ArtifactError, match="above 256"):
        check_range(packed.numpy(), 10, 8)
    packed[10], packed[11] = 0, 0b100
    with pytest.raises(ArtifactError, match="ninth-bit plane"):
        check_range(packed.numpy(), 10, 8)


def test_weights_after_the_last_one() -> None:
    packed = pack(torch.zeros(10), 2)
    packed[-1] = 0
    with pytest.raises(ArtifactError, match="unused places"):
        check_range(packed.numpy(), 10, 2)


def test_wrong_size() -> None:
    with pytest.raises(ArtifactError, match="wanted 2 for 10 weights"):
        check_range(np.zeros(3, dtype=np.uint8), 10, 1)


def test_codes_out_of_range() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        pack(torch.tensor([2]), 1)


@pytest.mark.parametrize("place", [0, 8 << 18, (8 << 18) + 12])
def test_a_ninth_bit_is_found_wherever_it_is(place: int) -> None:
    """The plane is looked at in parts of 2^18 bytes."""
    count = (8 << 18) + 13
    packed = pack(torch.ones(count, dtype=torch.int16), 8)
    check_range(packed.numpy(), count, 8)
    packed[count + place // 8] |= 1 << place % 8
    with pytest.raises(ArtifactError, match="above 256"):
        check_range(packed.numpy(), count, 8)
    packed[place] = 0
    check_range(packed.numpy(), count, 8)
    packed[-1] |= 1 << 5
    with pytest.raises(ArtifactError, match="ninth-bit plane"):
        check_range(packed.numpy(), count, 8)
