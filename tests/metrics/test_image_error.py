from __future__ import annotations

import math

import numpy as np
import pytest

from bitsfusion.errors import InputError
from bitsfusion.metrics.image_error import MAX_PSNR, mse, psnr

BLACK = np.zeros((2, 4, 4, 3), dtype=np.uint8)


def test_known_values():
    half = BLACK.copy()
    half[1] = 51  # a fifth of the range
    assert mse(BLACK, half) == pytest.approx([0, 0.04])
    assert psnr(BLACK, half) == pytest.approx([MAX_PSNR, 10 * math.log10(25)])
    assert mse(BLACK, BLACK + 255) == pytest.approx([1, 1])


def test_uint8_and_float_agree():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3, 5, 5, 3), dtype=np.uint8)
    expected = mse(a, b)
    assert expected.shape == (3,)
    assert mse(a.astype(np.float32) / 255, b) == pytest.approx(expected, rel=1e-5)
    assert psnr(a / 255, b / 255) == pytest.approx(psnr(a, b))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (BLACK[:1], "shapes"),
        (BLACK.astype(np.int64), "dtype int64"),
        (np.full(BLACK.shape, 1.5), "floats from 1.5"),
        (np.full(BLACK.shape, np.nan), "nan"),
    ],
    ids=["shape", "dtype", "range", "nan"],
)
def test_refuses(other, message):
    with pytest.raises(InputError, match=message):
        mse(BLACK, other)
