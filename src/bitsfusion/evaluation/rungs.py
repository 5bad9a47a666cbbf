"""Scores of one model of the ladder: the images it draws and the noise it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitsfusion.data.world.captions import TASKS
from bitsfusion.evaluation.prompts import PromptSet
from bitsfusion.io.files import atomic_path, read_json, write_json
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.metrics.geneval import GenEvalResult, GenEvalSummary, geneval_summary
from bitsfusion.metrics.image_error import mse
from bitsfusion.metrics.intervals import bootstrap_mean_interval

SCHEMA_VERSION = 2
"""Of scores.json; steps that write it name it among what they depend on."""

Images = npt.NDArray[np.uint8]
ImageMeasure = Literal["passed", "clip_scores"]
"""What every image has a value of: whether it is right, and its CLIP score."""


@dataclass(frozen=True)
class RungScores:
    """What was measured of one model, trained with one seed.

    Fields:
        name: full_precision, init, stage1, stage2 or control.
        seed: of its training; None where nothing was trained.
        passed: whether each image shows what was asked; None without a checker.
        clip_scores: each image's cosine; None without a scorer. image_mse: mean against full precision's images.
        noise_error: mean squared difference of its predicted noise to full precision's.
        noise_loss: mean squared difference of its predicted noise to the true noise.
        seconds: that drawing and scoring took.
        reload_difference: for a packed model, the largest difference of a pixel (of 255) to the images of the
            model as trained; None elsewhere.
    """

    name: str
    seed: int | None
    passed: list[bool] | None
    clip_scores: list[float] | None
    image_mse: float | None
    noise_error: float
    noise_loss: float
    seconds: float
    reload_difference: int | None = None

    @property
    def clip_score(self) -> float | None:
        """The mean of `clip_scores`."""
        return None if self.clip_scores is None else float(np.mean(self.clip_scores))

    def save(self, folder: Path, images: Images) -> None:
        """Writes images.npz and, last, scores.json."""
        with atomic_path(folder / "images.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, images=images)
        write_json(folder / "scores.json", {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> RungScores:
        """Reads scores.json."""
        values: dict[str, Any] = read_json(folder / "scores.json")
        values.pop("schema_version")
        return cls(**values)


def load_images(folder: Path) -> Images:
    """The images of a scored model, [n, h, w, 3] uint8."""
    with np.load(folder / "images.npz", allow_pickle=False) as stored:
        images: Images = stored["images"]
    return images


def score_images(
    images: Images, prompts: PromptSet, reference: Images | None, scorer: ClipScorer | None
) -> dict[str, Any]:
    """passed, clip_scores and image_mse of `images` ([n, h, w, 3] uint8), one a prompt."""
    return {
        "passed": prompts.check(images),
        "clip_scores": None if scorer is None else scorer.score(images, prompts.texts).tolist(),
        "image_mse": None if reference is None else float(mse(images, reference).mean()),
    }


def geneval(scores: Sequence[RungScores], prompts: PromptSet) -> GenEvalSummary | None:
    """GenEval's numbers of one rung over its training seeds; None without a checker or a task without images.

    The images of a prompt, one for each training seed, are one trial of its interval.
    """
    if prompts.world is None or {prompt.tag for prompt in prompts.world} != set(TASKS):
        return None
    results = [
        GenEvalResult(prompt.tag, correct, group=place)
        for score in scores
        for place, (prompt, correct) in enumerate(zip(prompts.world, score.passed or (), strict=True))
    ]
    return geneval_summary(results)


def paired_difference(
    scores: Sequence[RungScores], reference: Sequence[RungScores], measure: ImageMeasure = "passed"
) -> dict[str, float] | None:
    """How much more often than `reference` the images are right, or how much higher their CLIP score is.

    Each prompt's mean over training seeds is compared with the reference's on the same prompt and image
    seed: mean and 95 % interval over prompts. It speaks of new prompts, not of new training seeds.
    """
    ours, theirs = (
        [np.asarray(values, dtype=np.float64) for score in group if (values := getattr(score, measure)) is not None]
        for group in (scores, reference)
    )
    if not ours or not theirs:
        return None
    difference = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    low, high = bootstrap_mean_interval(difference)
    return {"mean": float(difference.mean()), "low": low, "high": high}
