"""Reads a drawn (or generated) image back into a scene.

Whatever stands out from the ground is cut into blobs. Each blob is compared with every shape and size in the cell
it stands in: the flat colour that explains most of its energy is fitted by least squares, and what the best of them
leaves unexplained says whether the blob is that shape at all.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bitsfusion.embedded.grid.scene import (
    BACKGROUND,
    CELL_SIZE,
    COLORS,
    GRID_SIZE,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Image,
    Object,
    Scene,
    shape_mask,
)
from bitsfusion.errors import InputError

UNREADABLE = "unreadable"
"""The shape (or colour) of a blob that is none; such an object makes every strict check fail."""

FOREGROUND = 48.0
"""RGB distance from the ground at which a pixel belongs to an object."""
SMALLEST = 8
"""Pixels; a blob of fewer is noise."""
MOST_UNEXPLAINED = 0.12
"""The share of a blob's energy that the best shape may leave unexplained."""
FARTHEST_COLOR = 60.0
"""RGB distance from the nearest colour's name."""


@functools.cache
def _templates() -> tuple[list[tuple[str, str]], npt.NDArray[np.float64]]:
    """The (shape, size) pairs and their masks, [12, 256], each of length 1."""
    names = [(shape, size) for shape in SHAPES for size in SIZES]
    masks = np.stack([shape_mask(*name).ravel() for name in names]).astype(np.float64)
    return names, masks / np.linalg.norm(masks, axis=1, keepdims=True)


def read(image: Image) -> Scene:
    """The objects seen in `image` ([64, 64, 3] uint8), in order of cell.

    A blob that no shape explains is returned with shape `UNREADABLE`, one whose colour is far from every name with
    colour `UNREADABLE`, so that a strict check never passes by overlooking something.

    Raises:
        InputError: the image has another size.
    """
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise InputError(f"image: got {list(image.shape)}, wanted [{IMAGE_SIZE}, {IMAGE_SIZE}, 3]")
    light = image.astype(np.float64) - np.asarray(BACKGROUND)
    labels, count = ndimage.label(np.linalg.norm(light, axis=-1) > FOREGROUND, structure=np.ones((3, 3)))
    blobs = (labels == label for label in range(1, count + 1))
    seen = [_identify(light, blob, labels) for blob in blobs if blob.sum() >= SMALLEST]
    return tuple(sorted(seen, key=lambda item: item.cell))


def _identify(light: npt.NDArray[np.float64], blob: npt.NDArray[np.bool_], labels: npt.NDArray[np.int32]) -> Object:
    """The object that one blob is. `light` is what the image adds to the ground, [64, 64, 3]."""
    row, column = (min(int(center) // CELL_SIZE, GRID_SIZE - 1) for center in ndimage.center_of_mass(blob))
    edge = ndimage.binary_dilation(blob, np.ones((3, 3))) & (labels == 0)  # half-covered pixels at the rim
    own = light * (blob | edge)[..., None]
    top, left = row * CELL_SIZE, column * CELL_SIZE
    cell = own[top : top + CELL_SIZE, left : left + CELL_SIZE].reshape(-1, 3)
    names, directions = _templates()
    explained = np.square(directions @ cell).sum(axis=1)  # energy along each template, any colour
    best = int(explained.argmax())
    shape, size = names[best]
    mask = shape_mask(shape, size).ravel().astype(np.float64)
    tint = np.asarray(BACKGROUND) + mask @ cell / np.square(mask).sum()
    distances = {name: float(np.linalg.norm(tint - np.asarray(rgb))) for name, rgb in COLORS.items()}
    color = min(distances, key=distances.__getitem__)
    if 1 - explained[best] / np.square(own).sum() > MOST_UNEXPLAINED:
        shape = UNREADABLE
    if distances[color] > FARTHEST_COLOR:
        color = UNREADABLE
    return Object(shape, color, size, row * GRID_SIZE + column)
