"""The paper's average bits, and the sizes that follow from a shape."""

import math

import pytest

from bitsfusion.errors import InputError
from bitsfusion.packing.accounting import FileBytes, LayerSize, average_bits


def test_average_bits_counts_removed_layers_and_time_features() -> None:
    average = average_bits({"a": 100, "b": 50, "time": 50}, {"a": 1, "b": 8}, feature_values=10)
    assert average == pytest.approx((100 * math.log2(3) + 50 * math.log2(257) + 160) / 200)


def test_unknown_layer() -> None:
    with pytest.raises(InputError, match="layer c"):
        average_bits({"a": 1}, {"c": 1}, 0)


def test_no_weights() -> None:
    with pytest.raises(InputError, match="no weights"):
        average_bits({}, {}, 0)


def test_layer_size() -> None:
    size = LayerSize(bits=1, weights=101, out_channels=7)
    assert (size.scale_bytes, size.code_bytes, size.bytes_in_memory) == (28, 21, 49)


def test_total() -> None:
    assert FileBytes(weights=1, scales=2, time_features=3, other=4, header=5).total == 15
