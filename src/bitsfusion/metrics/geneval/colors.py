"""The colours of detected objects by CLIP, without training: which of ten texts fits the masked crop best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PillowImage
from torch.nn import functional

from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.metrics.geneval.prompts import COLORS
from bitsfusion.metrics.geneval.scoring import Detection

Image = npt.NDArray[np.uint8]

OFFICIAL_CLIP = "openai/clip-vit-large-patch14"
"""The published evaluator's model (ViT-L/14 of OpenAI)."""
GROUND = (0x99, 0x99, 0x99)
"""The colour of pixels outside the object."""


class ColorReader(Protocol):
    """Names colours; `name` is what results record."""

    @property
    def name(self) -> str:
        """The model."""

    def names(self, image: Image, found: Sequence[Detection], class_name: str) -> list[str]:
        """The colour's name of each object of a class in `image` ([h, w, 3] uint8)."""


class ClipColors:
    """Zero-shot classification of masked crops; a colour's direction is the mean of three texts' unit vectors."""

    def __init__(self, scorer: ClipScorer, name: str) -> None:
        self.scorer = scorer
        self.name = name
        self._directions: dict[str, torch.Tensor] = {}

    @classmethod
    def from_pretrained(cls, source: str = OFFICIAL_CLIP, device: str = "cpu") -> ClipColors:
        """Loads the CLIP model from a folder or hub id; raises InputError if there is none."""
        return cls(ClipScorer.from_pretrained(source, device), source)

    def names(self, image: Image, found: Sequence[Detection], class_name: str) -> list[str]:
        """The likeliest of `COLORS` for each object."""
        if class_name not in self._directions:
            self._directions[class_name] = self._texts(class_name)
        directions = self._directions[class_name]
        chosen = [self.scorer.image_features(crop(image, item)[None]) @ directions.T for item in found]
        return [COLORS[int(cosines.argmax())] for cosines in chosen]

    def _texts(self, class_name: str) -> torch.Tensor:
        """[colours, width] unit vectors."""
        forms = ("a photo of a {} " + class_name, "a photo of a {}-colored " + class_name, "a photo of a {} object")
        texts = [form.format(color) for color in COLORS for form in forms]
        features = self.scorer.text_features(texts)
        return functional.normalize(features.view(len(COLORS), len(forms), -1).mean(1), dim=1)


def crop(image: Image, item: Detection) -> Image:
    """The box of `item` out of `image` ([h, w, 3] uint8), all that is outside its mask grey (#999)."""
    masked = image if item.mask is None else np.where(item.mask[..., None], image, np.asarray(GROUND, dtype=np.uint8))
    return np.asarray(PillowImage.fromarray(masked).crop(item.box))
