"""GenEval's evaluator: images and prompts to lines of results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitsfusion.metrics.geneval.colors import ColorReader
from bitsfusion.metrics.geneval.detector import Detector
from bitsfusion.metrics.geneval.files import ResultLine, result_line
from bitsfusion.metrics.geneval.prompts import GenEvalPrompt
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
