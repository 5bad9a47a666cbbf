"""Reads a drawn (or generated) image back into a scene: segment, label, fit each shape, name the colour."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bitsfusion.data.world.scene import BACKGROUND, CELL_SIZE, COLORS, SHAPES, SLOTS, Image, Object, Scene, draw

UNREADABLE = "unreadable"
"""Shape or colour of a blob that fits no template; such an object makes every strict check fail."""

_FOREGROUND = 48.0  # RGB distance from the ground at which a pixel belongs to an object
_SMALLEST = 10  # pixels; anything less is noise
_MIN_OVERLAP = 0.70  # intersection over union with the best template
_MAX_COLOR_DISTANCE = 90.0


@functools.cache
def _templates() -> tuple[tuple[str, int, npt.NDArray[np.bool_]], ...]:
    """(shape, slot, [64, 64] foreground mask) of every shape in every slot."""
    return tuple(
        (shape, slot, _foreground(draw((Object(shape, "white", slot),))))
        for shape in SHAPES
        for slot in range(len(SLOTS))
    )


def _foreground(image: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    difference = image.astype(np.float32) - np.asarray(BACKGROUND, dtype=np.float32)
    mask: npt.NDArray[np.bool_] = np.linalg.norm(difference, axis=-1) > _FOREGROUND
    return mask


def read(image: Image) -> Scene:
    """The objects seen in `image` ([64, 64, 3] uint8), in order of slot.

    A blob that no template fits is returned with shape `UNREADABLE`, one whose colour is far from every
    name with colour `UNREADABLE`, so that a strict check never passes by overlooking something.
    """
    labels, count = ndimage.label(_foreground(image), structure=np.ones((3, 3)))
    seen: list[Object] = []
    for label in range(1, count + 1):
        blob = labels == label
        if blob.sum() < _SMALLEST:
            continue
        overlap, shape, slot = max(
            ((blob & mask).sum() / (blob | mask).sum(), shape, slot) for shape, slot, mask in _templates()
        )
        if overlap < _MIN_OVERLAP:
            row, column = (int(center) // CELL_SIZE for center in ndimage.center_of_mass(blob))
            slot = min(range(len(SLOTS)), key=lambda s: abs(SLOTS[s][0] - row) + abs(SLOTS[s][1] - column))
            shape = UNREADABLE
        core = ndimage.binary_erosion(blob)
        color_seen = np.median(image[core if core.any() else blob].astype(np.float32), axis=0)
        distance, color = min(
            (float(np.linalg.norm(color_seen - np.asarray(rgb, dtype=np.float32))), name)
            for name, rgb in COLORS.items()
        )
        seen.append(Object(str(shape), color if distance <= _MAX_COLOR_DISTANCE else UNREADABLE, int(slot)))
    return tuple(sorted(seen, key=lambda item: item.slot))
