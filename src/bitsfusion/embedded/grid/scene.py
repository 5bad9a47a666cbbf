"""The grid world: shapes of two sizes and eight colours on a dark ground, in any cell of a 4x4 grid.

An image is 64x64 RGB; a cell is 16x16 pixels and holds one shape or none. Drawing is exact and procedural, so
training data never ends and an image can be read back without a learned detector.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitsfusion.errors import InputError

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
SIZES = ("small", "large")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "orange": (240, 135, 40),
    "yellow": (245, 220, 60),
    "green": (45, 190, 70),
    "cyan": (60, 205, 215),
    "blue": (60, 95, 240),
    "purple": (170, 60, 210),
    "white": (240, 240, 240),
}
BACKGROUND = (26, 28, 38)
IMAGE_SIZE = 64
CELL_SIZE = 16
GRID_SIZE = IMAGE_SIZE // CELL_SIZE
CELLS = GRID_SIZE**2
MOST_OBJECTS = 6
"""The most objects that a caption asks for."""

Image = npt.NDArray[np.uint8]

_SCALES = {"small": 0.62, "large": 1.0}
_SUBSAMPLES = 8


@dataclass(frozen=True)
class Object:
    """One drawn shape: the names of its shape, colour and size, and the cell it stands in, counted row by row."""

    shape: str
    color: str
    size: str
    cell: int

    @property
    def row(self) -> int:
        """The row of its cell, 0 at the top."""
        return self.cell // GRID_SIZE

    @property
    def column(self) -> int:
        """The column of its cell, 0 at the left."""
        return self.cell % GRID_SIZE


Scene = tuple[Object, ...]


@functools.cache
def shape_mask(shape: str, size: str) -> npt.NDArray[np.float32]:
    """Coverage of a shape over one cell: [16, 16] float32 in [0, 1], antialiased 8 times a side.

    Raises:
        InputError: there is no such shape or size.
    """
    if size not in SIZES:
        raise InputError(f"size: got {size!r}, wanted one of {', '.join(SIZES)}")
    axis = ((np.arange(CELL_SIZE * _SUBSAMPLES) + 0.5) / _SUBSAMPLES - CELL_SIZE / 2) / _SCALES[size]
    inside = _inside(shape, axis[None, :], axis[:, None])
    blocks = inside.reshape(CELL_SIZE, _SUBSAMPLES, CELL_SIZE, _SUBSAMPLES)
    mask: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return mask


def _inside(shape: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether each point belongs to the large shape; x runs to the right, y down, in pixels from the cell's centre."""
    if shape == "circle":
        return x**2 + y**2 <= 6.4**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 5.6
    if shape == "triangle":
        return (y <= 5.6) & (abs(x) <= (y + 6.8) * 0.55)
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 2.0) & (np.maximum(abs(x), abs(y)) <= 6.5)
    if shape == "diamond":
        return abs(x) + abs(y) <= 6.9
    if shape == "ring":
        return (x**2 + y**2 <= 6.5**2) & (x**2 + y**2 >= 3.4**2)
    raise InputError(f"shape: got {shape!r}, wanted one of {', '.join(SHAPES)}")


def draw(scene: Scene) -> Image:
    """The picture of `scene`: [64, 64, 3] uint8.

    Raises:
        InputError: a name or cell that the world does not have, or two objects in one cell.
    """
    if len({item.cell for item in scene}) < len(scene):
        raise InputError(f"scene: got cells {[item.cell for item in scene]}, wanted one object a cell")
    background = np.asarray(BACKGROUND, dtype=np.float32)
    image = np.tile(background, (IMAGE_SIZE, IMAGE_SIZE, 1))
    for item in scene:
        if item.color not in COLORS or not 0 <= item.cell < CELLS:
            raise InputError(f"object: got {item}, wanted a colour of {', '.join(COLORS)} and a cell below {CELLS}")
        top, left = item.row * CELL_SIZE, item.column * CELL_SIZE
        mask = shape_mask(item.shape, item.size)[..., None]
        color = np.asarray(COLORS[item.color], dtype=np.float32)
        image[top : top + CELL_SIZE, left : left + CELL_SIZE] = background + mask * (color - background)
    return np.rint(image).astype(np.uint8)
