"""A drawn world's own reader in the place of detector and colour classifier: exact, without weights."""

from __future__ import annotations

from collections.abc import Sequence

from bitsfusion.embedded.quick import QUICK
from bitsfusion.embedded.world import CELL_SIZE, Image, Object
from bitsfusion.errors import InputError
from bitsfusion.metrics.geneval.scoring import Box, Detection, Detections


class WorldReader:
    """Reads images of coloured shapes; shapes are the classes, boxes the cells, and every reading is certain.

    What is no shape is of the class "unreadable", which no prompt asks for. The verdict is the evaluator's, which
    lets other objects pass; `World.shows` does not.
    """

    name = "the drawn world's reader"

    def check_classes(self, names: tuple[str, ...]) -> None:
        """Raises InputError for a class that is no shape."""
        if unknown := [name for name in names if name not in QUICK.shapes]:
            raise InputError(f"the drawn world's reader: got {unknown[0]!r}, wanted one of {', '.join(QUICK.shapes)}")

    def detect(self, image: Image) -> Detections:
        """The shapes in `image`. Raises InputError where it is not of the world's size."""
        found: dict[str, list[Detection]] = {}
        for item in QUICK.read(image):
            found.setdefault(item.shape, []).append(Detection(_cell(item), 1.0))
        return found

    def names(self, image: Image, found: Sequence[Detection], class_name: str) -> list[str]:
        """The colours of `found`."""
        colors = {_cell(item): item.color for item in QUICK.read(image)}
        return [colors[item.box] for item in found]


def _cell(item: Object) -> Box:
    left, top = item.column * CELL_SIZE, item.row * CELL_SIZE
    return left, top, left + CELL_SIZE, top + CELL_SIZE
