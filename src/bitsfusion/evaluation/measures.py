"""The metrics by name: of each image, of pairs of images, and of whole sets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bitsfusion.errors import InputError
from bitsfusion.evaluation.pictures import Images, PictureFiles, read_picture
from bitsfusion.evaluation.prompts import PromptSet
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.metrics.fid import Batches, FrechetDistance, load_features
from bitsfusion.metrics.geneval.prompts import TASKS
from bitsfusion.metrics.image_error import mse, psnr
from bitsfusion.metrics.lpips import Lpips
from bitsfusion.metrics.structure import ssim

Values: TypeAlias = npt.NDArray[np.float64]
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Metric(str, Enum):
    """The metrics that can be asked for."""

    CLIP = "clip"
    MSE = "mse"
    PSNR = "psnr"
    SSIM = "ssim"
    LPIPS = "lpips"
    FID = "fid"
    GENEVAL = "geneval"
    TIFA = "tifa"


PAIRED = (Metric.MSE, Metric.PSNR, Metric.SSIM, Metric.LPIPS)
"""Metrics of a picture and the original's picture of the same prompt and seed."""


@dataclass(frozen=True)
class Judgement:
    """A picture's value, and what was found in it, as JSON."""

    value: float
    record: Any = None


@dataclass(frozen=True)
class ImageMeasure:
    """A value of each picture by itself; higher is better.

    Fields:
        judge: images [n, h, w, 3] uint8 and where they are among the prompts, to n judgements.
        settings: what the number depends on, as JSON.
        groups: the group of each picture: the mean is that of the groups' means (GenEval's tasks); None: of all.
        publish: writes the pictures' records to a folder, in the files of the published evaluator.
    """

    metric: Metric
    judge: Callable[[Images, slice], Sequence[Judgement]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[str] | None = None
    publish: Callable[[PictureFiles, Sequence[Any], Path], None] | None = None

    def by_group(self, values: Values) -> dict[str, float] | None:
        """The mean of each group."""
        if self.groups is None:
            return None
        groups = np.asarray(self.groups)
        order = [*(name for name in TASKS if name in self.groups), *sorted(set(self.groups) - set(TASKS))]
        return {name: float(values[groups == name].mean()) for name in order}


@dataclass(frozen=True)
class PairMeasure:
    """A value of each pair of pictures; `distance` takes two [n, h, w, 3] uint8 to n values."""

    metric: Metric
    distance: Callable[[Images, Images], Values]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SetMeasure:
    """A value of a whole set of pictures, which are passed in batches; lower is better."""

    metric: Metric
    score: Callable[[Batches], float]
    settings: Mapping[str, Any] = field(default_factory=dict)


Measure: TypeAlias = ImageMeasure | PairMeasure | SetMeasure


def clip_measure(scorer: ClipScorer, prompts: PromptSet, name: str) -> ImageMeasure:
    """CLIP score, as a cosine (others report 100 times this); `name` is what results call the model."""

    def judge(images: Images, where: slice) -> list[Judgement]:
        return [Judgement(float(value)) for value in scorer.score(images, prompts.texts[where])]

    return ImageMeasure(Metric.CLIP, judge, {"clip": name, "scale": 1})


def pair_measure(metric: Metric, lpips: str = "alex", device: str = "cpu") -> PairMeasure:
    """MSE, PSNR, SSIM or LPIPS; `lpips` and `device` are of its network."""
    if metric is Metric.LPIPS:
        network = Lpips.from_pretrained(lpips, device)
        return PairMeasure(metric, network, {"network": network.name})
    plain = {Metric.MSE: mse, Metric.PSNR: psnr, Metric.SSIM: ssim}[metric]
    settings: dict[Metric, dict[str, Any]] = {Metric.SSIM: {"window": 11, "sigma": 1.5}, Metric.PSNR: {"unit": "dB"}}
    return PairMeasure(metric, plain, settings.get(metric, {}))


def fid_measure(features: str, reference: Path, device: str) -> SetMeasure:
    """FID against the images in folder `reference`, each cropped to its centre square; the features' network resizes.

    Raises:
        InputError: no such features, or no images in the folder.
    """
    network = load_features(features, device)
    files = sorted(path for path in Path(reference).rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(files) < 2:
        raise InputError(f"FID: got {len(files)} images in {reference}, wanted a folder of at least two")

    @functools.cache
    def distance() -> FrechetDistance:
        return FrechetDistance(network, (_square(read_picture(path))[None] for path in files))

    settings = {
        "features": network.name,
        "reference": str(reference),
        "reference_images": len(files),
        "reference_crop": "centre square",
        "resize": "by the features' network",
    }
    return SetMeasure(Metric.FID, lambda images: distance()(images), settings)


def world_geneval_measure(prompts: PromptSet) -> ImageMeasure:
    """GenEval on a drawn world, by its own exact reader."""
    assert prompts.world is not None

    def judge(images: Images, where: slice) -> list[Judgement]:
        return [Judgement(float(right)) for right in prompts.check(images, where) or ()]

    return ImageMeasure(
        Metric.GENEVAL,
        judge,
        {"detector": "the drawn world's reader", "rules": "strict: nothing but what was asked for"},
        [prompt.tag for prompt in prompts.asked],
    )


def _square(image: Images) -> Images:
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]
