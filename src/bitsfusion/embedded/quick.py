"""The quick world: four shapes of six colours in the four inner cells; the embedded model's, trained in an hour."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bitsfusion.embedded.world import (
    BACKGROUND,
    CELL_SIZE,
    GRID_SIZE,
    UNREADABLE,
    Image,
    Mask,
    Object,
    Prompt,
    Scene,
    Split,
    World,
    check_size,
)
from bitsfusion.errors import InputError

_FOREGROUND = 48.0  # RGB distance from the ground at which a pixel belongs to an object
_SMALLEST = 10  # pixels; anything less is noise
_MIN_OVERLAP = 0.70  # intersection over union with the best template
_MAX_COLOR_DISTANCE = 90.0


class QuickWorld(World):
    """See the module; its reader compares outlines."""

    name = "quick"
    seed = "captions"
    shapes = ("circle", "square", "triangle", "cross")
    colors: ClassVar = {
        "red": (225, 45, 45),
        "green": (45, 190, 70),
        "blue": (60, 95, 240),
        "yellow": (245, 215, 55),
        "purple": (165, 60, 205),
        "white": (240, 240, 240),
    }
    cells = (5, 6, 9, 10)
    counts = (2, 3, 4)
    prefixes = ("", "a photo of ", "a drawing of ", "a picture of ")

    def sample_prompt(
        self, rng: random.Random, split: Split = "train", weights: Sequence[float] | None = None
    ) -> Prompt:
        """The same; tasks have one family here, for which no random number is drawn."""
        (family,) = self.families(rng.choices(self.tasks, weights)[0], split)
        return rng.choice(family)

    def in_line(self, row: bool, rng: random.Random) -> tuple[int, int]:
        """Two neighbours: the four cells are two rows of two."""
        line, column = rng.randrange(2), rng.randrange(2)
        return (self.cells[2 * line], self.cells[2 * line + 1]) if row else (self.cells[column], self.cells[column + 2])

    def inside(self, shape: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Mask:
        """See `World`."""
        if shape == "circle":
            return x**2 + y**2 <= 6.4**2
        if shape == "square":
            return np.maximum(abs(x), abs(y)) <= 5.5
        if shape == "triangle":
            return (y <= 5.6) & (abs(x) <= (y + 6.6) * 0.56)
        if shape == "cross":
            return (np.minimum(abs(x), abs(y)) <= 2.1) & (np.maximum(abs(x), abs(y)) <= 6.5)
        raise InputError(f"shape: got {shape!r}, wanted one of {', '.join(self.shapes)}")

    def read(self, image: Image) -> Scene:
        """Each blob is compared with every shape in every cell; its colour is the median of its inner pixels'."""
        check_size(image)
        labels, count = ndimage.label(_foreground(image), structure=np.ones((3, 3)))
        blobs = (labels == label for label in range(1, count + 1))
        seen = [self._identify(image, blob) for blob in blobs if blob.sum() >= _SMALLEST]
        return tuple(sorted(seen, key=lambda item: item.cell))

    def _identify(self, image: Image, blob: Mask) -> Object:
        overlap, shape, cell = max(
            ((blob & mask).sum() / (blob | mask).sum(), shape, cell) for shape, cell, mask in self._templates
        )
        if overlap < _MIN_OVERLAP:
            row, column = (int(center) // CELL_SIZE for center in ndimage.center_of_mass(blob))
            shape = UNREADABLE
            cell = min(self.cells, key=lambda one: abs(one // GRID_SIZE - row) + abs(one % GRID_SIZE - column))
        core = ndimage.binary_erosion(blob)
        tint = np.median(image[core if core.any() else blob].astype(np.float32), axis=0)
        distance, color = min(
            (float(np.linalg.norm(tint - np.asarray(rgb, dtype=np.float32))), name) for name, rgb in self.colors.items()
        )
        return Object(shape, color if distance <= _MAX_COLOR_DISTANCE else UNREADABLE, self.sizes[0], cell)

    @functools.cached_property
    def _templates(self) -> list[tuple[str, int, Mask]]:
        """(shape, cell, [64, 64] foreground) of every shape in every cell."""
        return [
            (shape, cell, _foreground(self.draw((Object(shape, "white", self.sizes[0], cell),))))
            for shape in self.shapes
            for cell in self.cells
        ]


def _foreground(image: Image) -> Mask:
    difference = image.astype(np.float32) - np.asarray(BACKGROUND, dtype=np.float32)
    mask: Mask = np.linalg.norm(difference, axis=-1) > _FOREGROUND
    return mask


QUICK = QuickWorld()
