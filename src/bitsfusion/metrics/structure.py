"""Structural similarity of pairs of images (SSIM, Wang et al. 2004), by torchmetrics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bitsfusion.errors import InputError

SMALLEST = 11
"""Pixels of the Gaussian window's side; smaller images have no SSIM."""


def ssim(images: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """SSIM of each pair ([n, h, w, 3] uint8 each): [n], 1 for equal images; window 11, sigma 1.5, range 0 to 1.

    Raises:
        InputError: shapes differ, or the images are smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if images.shape != others.shape or images.ndim != 4 or min(images.shape[1:3]) < SMALLEST:
        raise InputError(
            f"SSIM: got shapes {list(images.shape)} and {list(others.shape)}, "
            f"wanted two equal [n, h, w, 3] of at least {SMALLEST} pixels a side"
        )
    first, second = (torch.from_numpy(array).permute(0, 3, 1, 2).double() / 255 for array in (images, others))
    values = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    assert isinstance(values, torch.Tensor)
    result: npt.NDArray[np.float64] = values.reshape(len(images)).numpy()
    return result
