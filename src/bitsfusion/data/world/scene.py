"""The drawn world: coloured shapes on a dark ground, in the four inner cells of a 4x4 grid.

An image is 64x64 RGB; a cell is 16x16 pixels and holds one shape or none. Everything is exact and
procedural, so training data is endless and an image can be read back without a learned detector.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHAPES = ("circle", "square", "triangle", "cross")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (45, 190, 70),
    "blue": (60, 95, 240),
    "yellow": (245, 215, 55),
    "purple": (165, 60, 205),
    "white": (240, 240, 240),
}
BACKGROUND = (26, 28, 38)
IMAGE_SIZE = 64
CELL_SIZE = 16
GRID_SIZE = IMAGE_SIZE // CELL_SIZE
SLOTS = ((1, 1), (1, 2), (2, 1), (2, 2))
"""The (row, column) of each cell that may hold an object; a slot is an index into this tuple."""

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Object:
    """One drawn shape: its name, its colour's name and the slot it stands in."""

    shape: str
    color: str
    slot: int


Scene = tuple[Object, ...]


@functools.cache
def shape_mask(shape: str) -> npt.NDArray[np.float32]:
    """Coverage of `shape` over one cell: [16, 16] float32 in [0, 1], antialiased 8 times a side."""
    samples = 8
    axis = (np.arange(CELL_SIZE * samples) + 0.5) / samples - CELL_SIZE / 2
    x, y = axis[None, :], axis[:, None]
    if shape == "circle":
        inside = x**2 + y**2 <= 6.4**2
    elif shape == "square":
        inside = np.maximum(abs(x), abs(y)) <= 5.5
    elif shape == "triangle":
        inside = (y <= 5.6) & (abs(x) <= (y + 6.6) * 0.56)
    elif shape == "cross":
        inside = (np.minimum(abs(x), abs(y)) <= 2.1) & (np.maximum(abs(x), abs(y)) <= 6.5)
    else:
        raise ValueError(f"shape: got {shape!r}, wanted one of {', '.join(SHAPES)}")
    cells = inside.reshape(CELL_SIZE, samples, CELL_SIZE, samples)
    mask: npt.NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return mask


def draw(scene: Scene) -> Image:
    """The picture of `scene`: [64, 64, 3] uint8."""
    background = np.asarray(BACKGROUND, dtype=np.float32)
    image = np.tile(background, (IMAGE_SIZE, IMAGE_SIZE, 1))
    for item in scene:
        row, column = SLOTS[item.slot]
        top, left = row * CELL_SIZE, column * CELL_SIZE
        mask = shape_mask(item.shape)[..., None]
        color = np.asarray(COLORS[item.color], dtype=np.float32)
        image[top : top + CELL_SIZE, left : left + CELL_SIZE] = background + mask * (color - background)
    return np.rint(image).astype(np.uint8)
