"""Pictures as the models take them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def to_pixels(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """[n, h, w, 3] uint8 -> [n, 3, h, w] float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_images(pixels: torch.Tensor) -> npt.NDArray[np.uint8]:
    """[n, 3, h, w] in [-1, 1] -> [n, h, w, 3] uint8."""
    scaled = pixels.float().add(1).mul(127.5).round().clamp(0, 255)
    images: npt.NDArray[np.uint8] = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return images
