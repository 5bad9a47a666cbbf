"""The grid world, on which methods can be told apart: six shapes of eight colours and two sizes, in any cell.

Two tasks are added to GenEval's: three objects, and sizes.
"""

from __future__ import annotations

import functools
import itertools
import random
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bitsfusion.embedded.world import (
    BACKGROUND,
    CELL_SIZE,
    CELLS,
    GRID_SIZE,
    TASKS,
    UNREADABLE,
    Image,
    Includes,
    Mask,
    Object,
    Requirement,
    Scene,
    World,
    check_size,
)
from bitsfusion.errors import InputError

MOST_OBJECTS = 6
"""The most objects that a caption asks for."""
GUIDANCE = 3.0
"""Chosen on validation prompts, where 2 to 5 are not told apart."""

_FOREGROUND = 48.0  # RGB distance from the ground at which a pixel belongs to an object
_SMALLEST = 8  # pixels; a blob of fewer is noise
_MOST_UNEXPLAINED = 0.12  # the share of a blob's energy that the best shape may leave unexplained
_FARTHEST_COLOR = 60.0  # RGB distance from the nearest colour's name


class GridWorld(World):
    """See the module; its reader fits shapes by least squares."""

    name = "grid"
    seed = "grid captions"
    tasks = (*TASKS, "three_object", "size")
    shapes = ("circle", "square", "triangle", "cross", "diamond", "ring")
    sizes = ("small", "large")
    colors: ClassVar = {
        "red": (225, 45, 45),
        "orange": (240, 135, 40),
        "yellow": (245, 220, 60),
        "green": (45, 190, 70),
        "cyan": (60, 205, 215),
        "blue": (60, 95, 240),
        "purple": (170, 60, 210),
        "white": (240, 240, 240),
    }
    cells = range(CELLS)
    counts = (2, 3, 4, 5, 6)
    prefixes = ("", "a photo of ", "a drawing of ", "a picture of ", "an image of ", "a painting of ")
    scales: ClassVar = {"small": 0.62, "large": 1.0}

    def includes(self, tag: str) -> dict[str, Includes]:
        """The same, with a family of harder captions where there is one."""
        if tag == "three_object":
            return self._three_objects()
        if tag == "size":
            return self._sizes()
        found = super().includes(tag)
        if tag == "counting":
            pairs = itertools.permutations(self.shapes, 2)
            counts = itertools.product(range(1, MOST_OBJECTS), repeat=2)
            two = [(m, n) for m, n in counts if 3 <= m + n <= MOST_OBJECTS]
            found["two kinds"] = [(Requirement(a, m), Requirement(b, n)) for a, b in pairs for m, n in two]
        if tag == "colors":
            named = list(itertools.product(self.colors, self.shapes))
            found["several"] = [(Requirement(shape, count, color),) for count in (2, 3) for color, shape in named]
        return found

    def _three_objects(self) -> dict[str, Includes]:
        triples = list(itertools.permutations(self.shapes, 3))
        # Every triple of shapes with each triple of colours would be 40,320 captions: the colours go round.
        wheel = itertools.cycle(itertools.permutations(self.colors, 3))
        return {
            "": [tuple(map(Requirement, shapes)) for shapes in triples],
            "coloured": [
                tuple(Requirement(shape, color=color) for shape, color in zip(shapes, next(wheel), strict=True))
                for shapes in triples
                for _ in range(10)
            ],
        }

    def _sizes(self) -> dict[str, Includes]:
        pairs = list(itertools.permutations(self.shapes, 2))
        sizes = list(itertools.product(self.sizes, repeat=2))
        one: Includes = [(Requirement(shape, size=size),) for size, shape in itertools.product(self.sizes, self.shapes)]
        both: Includes = [(Requirement(a, size=s), Requirement(b, size=t)) for a, b in pairs for s, t in sizes]
        hues = itertools.cycle(itertools.permutations(self.colors, 2))
        return {
            "": one + both,
            "coloured": [
                (Requirement(a, color=c, size=s), Requirement(b, color=d, size=t))
                for a, b in pairs
                for s, t in sizes
                for c, d in itertools.islice(hues, 11)
            ],
        }

    def in_line(self, row: bool, rng: random.Random) -> tuple[int, int]:
        """Two cells of a line, with any number of cells between them."""
        line = rng.randrange(GRID_SIZE)
        first, second = sorted(rng.sample(range(GRID_SIZE), 2))
        if row:
            return line * GRID_SIZE + first, line * GRID_SIZE + second
        return first * GRID_SIZE + line, second * GRID_SIZE + line

    def inside(self, shape: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Mask:
        """See `World`."""
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
        raise InputError(f"shape: got {shape!r}, wanted one of {', '.join(self.shapes)}")

    def read(self, image: Image) -> Scene:
        """Each blob is compared with every shape and size in the cell it stands in.

        The flat colour that explains most of its energy is fitted by least squares, and what the best of them leaves
        unexplained says whether the blob is that shape at all.
        """
        check_size(image)
        light = image.astype(np.float64) - np.asarray(BACKGROUND)
        labels, count = ndimage.label(np.linalg.norm(light, axis=-1) > _FOREGROUND, structure=np.ones((3, 3)))
        blobs = (labels == label for label in range(1, count + 1))
        seen = [self._identify(light, blob, labels) for blob in blobs if blob.sum() >= _SMALLEST]
        return tuple(sorted(seen, key=lambda item: item.cell))

    def _identify(self, light: npt.NDArray[np.float64], blob: Mask, labels: npt.NDArray[np.int32]) -> Object:
        """The object that one blob is. `light` is what the image adds to the ground, [64, 64, 3]."""
        row, column = (min(int(center) // CELL_SIZE, GRID_SIZE - 1) for center in ndimage.center_of_mass(blob))
        edge = ndimage.binary_dilation(blob, np.ones((3, 3))) & (labels == 0)  # half-covered pixels at the rim
        own = light * (blob | edge)[..., None]
        top, left = row * CELL_SIZE, column * CELL_SIZE
        cell = own[top : top + CELL_SIZE, left : left + CELL_SIZE].reshape(-1, 3)
        names, directions = self._templates
        explained = np.square(directions @ cell).sum(axis=1)  # energy along each template, any colour
        best = int(explained.argmax())
        shape, size = names[best]
        mask = self.mask(shape, size).ravel().astype(np.float64)
        tint = np.asarray(BACKGROUND) + mask @ cell / np.square(mask).sum()
        distances = {name: float(np.linalg.norm(tint - np.asarray(rgb))) for name, rgb in self.colors.items()}
        color = min(distances, key=distances.__getitem__)
        if 1 - explained[best] / np.square(own).sum() > _MOST_UNEXPLAINED:
            shape = UNREADABLE
        if distances[color] > _FARTHEST_COLOR:
            color = UNREADABLE
        return Object(shape, color, size, row * GRID_SIZE + column)

    @functools.cached_property
    def _templates(self) -> tuple[list[tuple[str, str]], npt.NDArray[np.float64]]:
        """The (shape, size) pairs and their masks, [12, 256], each of length 1."""
        names = list(itertools.product(self.shapes, self.sizes))
        masks = np.stack([self.mask(*name).ravel() for name in names]).astype(np.float64)
        return names, masks / np.linalg.norm(masks, axis=1, keepdims=True)


GRID = GridWorld()
