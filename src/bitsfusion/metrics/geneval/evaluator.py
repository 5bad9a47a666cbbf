"""GenEval's evaluator: images and prompts to lines of results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageOps

from bitsfusion.errors import InputError
from bitsfusion.metrics.geneval.colors import ColorReader
from bitsfusion.metrics.geneval.detector import Detector
from bitsfusion.metrics.geneval.files import ResultLine, read_tree, result_line
from bitsfusion.metrics.geneval.prompts import GenEvalPrompt, class_names
from bitsfusion.metrics.geneval.scoring import PUBLISHED, Thresholds, judge, kept

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluator:
    """What sees objects, what names their colours, and the constants."""

    detector: Detector
    colors: ColorReader
    thresholds: Thresholds = PUBLISHED

    def settings(self) -> dict[str, Any]:
        """What a score depends on beside the images, as JSON."""
        return {"detector": self.detector.name, "colors": self.colors.name, "thresholds": asdict(self.thresholds)}

    def evaluate(self, image: Image, prompt: GenEvalPrompt, filename: str) -> ResultLine:
        """The line of one image ([h, w, 3] uint8)."""
        objects = kept(self.detector.detect(image), prompt.tag, self.thresholds)
        verdict = judge(objects, prompt, lambda found, name: self.colors.names(image, found, name), self.thresholds)
        return result_line(filename, prompt, objects, verdict)

    def evaluate_tree(self, tree: Path) -> Iterator[ResultLine]:
        """The lines of a tree of images (`files`), one at a time; the tree may come from any generator.

        Raises:
            InputError: there is none, the detector does not know a class of its prompts, or a file in it is no image.
        """
        items = list(read_tree(tree))
        self.detector.check_classes(class_names([item.prompt for item in items]))
        for item in items:
            try:
                with PillowImage.open(item.path) as opened:
                    image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
            except (OSError, SyntaxError) as error:
                raise InputError(f"{item.path}: wanted an image, got {error}") from None
            yield self.evaluate(image, item.prompt, str(item.path))
