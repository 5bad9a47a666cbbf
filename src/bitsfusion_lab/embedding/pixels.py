"""Pictures as the models take them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def to_pixels(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """[n, h, w, 3] uint8 -> [n, 3, h, w] float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
