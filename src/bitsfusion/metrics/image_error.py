"""Error between pairs of images (section 4): mean squared error and peak signal-to-noise ratio."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bitsfusion.errors import InputError

MAX_PSNR = 100.0
"""dB reported for images that are (nearly) equal, where the ratio itself has no bound."""


def mse(images: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Mean squared error of each pair: [n] in units of the full range, 0 (equal) to 1 (black against white).

    Args:
        images, others: [n, ...] of one shape; uint8, or floats in [0, 1]. The two need not have the same dtype.

    Raises:
        InputError: shapes differ, there is no image, or the values are neither uint8 nor floats in [0, 1].
    """
    if images.shape != others.shape or images.ndim < 2 or images.size == 0:
        raise InputError(
            f"images: got shapes {list(images.shape)} and {list(others.shape)}, wanted two equal [n, ...] with n >= 1"
        )
    difference = _unit_range(images) - _unit_range(others)
    error: npt.NDArray[np.float64] = np.square(difference).reshape(len(images), -1).mean(axis=1)
    return error


def psnr(images: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio of each pair: [n] in dB, at most `MAX_PSNR`. Arguments and errors as `mse`."""
    ratio: npt.NDArray[np.float64] = -10 * np.log10(np.maximum(mse(images, others), math.pow(10, -MAX_PSNR / 10)))
    return ratio


def _unit_range(images: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if images.dtype == np.uint8:
        return images.astype(np.float64) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"images: got dtype {images.dtype}, wanted uint8 or floats in [0, 1]")
    if not (images.min() >= 0 and images.max() <= 1):  # NaN fails as well
        raise InputError(f"images: got floats from {images.min()} to {images.max()}, wanted 0 to 1")
    return images.astype(np.float64)
