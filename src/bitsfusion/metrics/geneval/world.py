"""The drawn world's own reader in the place of detector and colour classifier: exact, without weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitsfusion.data.world.reader import read
from bitsfusion.data.world.scene import CELL_SIZE, IMAGE_SIZE, SHAPES, SLOTS, Object
from bitsfusion.errors import InputError
from bitsfusion.metrics.geneval.scoring import Box, Detection, Detections

Image = npt.NDArray[np.uint8]


class WorldReader:
    """Reads [64, 64, 3] uint8 images of coloured shapes; shapes are the classes, and every reading is certain.

    What fits no shape is of the class "unreadable", which no prompt asks for. The verdict is the evaluator's, which
    lets other objects pass; `bitsfusion.data.world.captions.fits` does not.
    """

    name = "the drawn world's reader"

    def check_classes(self, names: tuple[str, ...]) -> None:
        """Raises InputError for a class that is no shape."""
        unknown = [name for name in names if name not in SHAPES]
        if unknown:
            raise InputError(f"the drawn world's reader: got {unknown[0]!r}, wanted one of {', '.join(SHAPES)}")

    def detect(self, image: Image) -> Detections:
        """The shapes in `image`; a box is the cell that the shape stands in.

        Raises:
            InputError: the image is not of the world's size.
        """
        if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
            raise InputError(
                f"the drawn world's reader: got an image {list(image.shape)}, wanted [{IMAGE_SIZE}, {IMAGE_SIZE}, 3]"
            )
        found: dict[str, list[Detection]] = {}
        for item in read(image):
            found.setdefault(item.shape, []).append(Detection(_cell(item), 1.0))
        return found

    def names(self, image: Image, found: Sequence[Detection], class_name: str) -> list[str]:
        """The colours of `found`."""
        colors = {_cell(item): item.color for item in read(image)}
        return [colors[item.box] for item in found]


def _cell(item: Object) -> Box:
    row, column = SLOTS[item.slot]
    return column * CELL_SIZE, row * CELL_SIZE, (column + 1) * CELL_SIZE, (row + 1) * CELL_SIZE
