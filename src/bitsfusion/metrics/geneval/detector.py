"""What sees the objects in an image: a segmentation model, or the drawn world's own reader."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

from bitsfusion.errors import InputError
from bitsfusion.metrics.checkpoint import load_checkpoint
from bitsfusion.metrics.geneval.scoring import Detection, Detections

Image = npt.NDArray[np.uint8]

OFFICIAL = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco (mmdet)"
"""The detector of published GenEval scores; no other one gives exactly their numbers."""

RENAMED = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
"""Labels of COCO models that GenEval's prompts call otherwise."""


class Detector(Protocol):
    """Sees objects; `name` is what results record."""

    @property
    def name(self) -> str:
        """The model."""

    def check_classes(self, names: tuple[str, ...]) -> None:
        """Raises InputError where a class could never be seen: every image would count as wrong."""

    def detect(self, image: Image) -> Detections:
        """The objects in `image` ([h, w, 3] uint8), of every confidence."""


class Mask2FormerDetector:
    """Instance segmentation by a Mask2Former of transformers, trained on COCO.

    Differs from the paper: the published evaluator runs mmdet's checkpoint (`OFFICIAL`); transformers' checkpoints are
    other ones of the same architecture, so that scores are near but not comparable to the digit. The most likely
    (query, class) pairs, as many as there are queries, are objects; their confidence is the class's probability times
    the mean of the mask's, as in mmdet.
    """

    def __init__(self, model: Any, image_processor: Any, name: str) -> None:
        self.model = model.eval()
        self.image_processor = image_processor
        self.name = name
        labels = model.config.id2label
        self.labels = [RENAMED.get(labels[index], labels[index]) for index in range(len(labels))]

    @classmethod
    def from_pretrained(cls, source: str, device: str = "cpu") -> Mask2FormerDetector:
        """A detector from a folder, or hub id, such as facebook/mask2former-swin-small-coco-instance.

        Raises:
            InputError: it holds no such model, or not all of its weights.
        """
        model, image_processor = load_checkpoint(
            source,
            Mask2FormerForUniversalSegmentation,
            Mask2FormerImageProcessorPil,
            what="GenEval's detector",
            wanted="a Mask2Former model with its image processor",
        )
        return cls(model.to(torch.device(device)), image_processor, f"{source} (transformers; not {OFFICIAL})")

    def check_classes(self, names: tuple[str, ...]) -> None:
        """Raises InputError where the model has no label of a name."""
        unknown = [name for name in names if name not in self.labels]
        if unknown:
            raise InputError(
                f"GenEval's detector: {self.name} knows {len(self.labels)} classes without {unknown[0]!r}, "
                f"wanted one trained on the prompts' classes"
            )

    @torch.no_grad()
    def detect(self, image: Image) -> Detections:
        """The objects in `image` ([h, w, 3] uint8), with masks; classes in the order of the model's labels."""
        inputs = self.image_processor(images=[image], input_data_format="channels_last", return_tensors="pt")
        output = self.model(pixel_values=inputs["pixel_values"].to(self.model.device, self.model.dtype))
        likely = output.class_queries_logits[0].float().softmax(-1)[:, :-1]  # the last one is "no object"
        queries, classes = likely.shape
        scores, places = likely.flatten().topk(queries)
        logits = output.masks_queries_logits[0][places // classes].float()
        logits = functional.interpolate(logits[None], size=image.shape[:2], mode="bilinear", align_corners=False)[0]
        masks = logits > 0
        sizes = masks.sum((1, 2))
        confidence = scores * (logits.sigmoid() * masks).sum((1, 2)) / (sizes + 1e-6)
        found: dict[str, list[Detection]] = {label: [] for label in self.labels}
        for index in sizes.nonzero().flatten().tolist():
            mask = masks[index].cpu().numpy()
            item = Detection(_box(mask), float(confidence[index]), mask)
            found[self.labels[int(places[index]) % classes]].append(item)
        return {label: seen for label, seen in found.items() if seen}


def _box(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
