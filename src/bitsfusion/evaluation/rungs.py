"""What was measured of one model of a ladder: the images it draws, the noise it predicts, and how it compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bitsfusion.errors import InputError
from bitsfusion.evaluation.estimates import Difference, difference, trained_difference
from bitsfusion.evaluation.measures import Metric, clip_measure, pair_measure, world_geneval_measure
from bitsfusion.evaluation.pictures import Images
from bitsfusion.evaluation.prompts import PromptSet
from bitsfusion.io.atomic import atomic_path
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.metrics.geneval import GenEvalResult, GenEvalSummary, geneval_summary

SCHEMA_VERSION = 2
"""The version of scores.json; steps that write it name it among what they depend on."""

ImageValue: TypeAlias = Literal["passed", "clip_scores"]
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
    every = slice(0, len(images))
    passed = clip_scores = image_mse = None
    if prompts.world is not None:
        passed = [bool(one.value) for one in world_geneval_measure(prompts).judge(images, every)]
    if scorer is not None:
        clip_scores = [one.value for one in clip_measure(scorer, prompts, "").judge(images, every)]
    if reference is not None:
        image_mse = float(pair_measure(Metric.MSE).distance(images, reference).mean())
    return {"passed": passed, "clip_scores": clip_scores, "image_mse": image_mse}


def means(scores: Sequence[RungScores]) -> dict[str, float | None]:
    """Of each figure that models of a rung have, the mean of those that have it; None where none has."""
    return {
        name: known_mean([getattr(score, name) for score in scores])
        for name in ("clip_score", "image_mse", "noise_error", "noise_loss")
    }


def known_mean(values: Sequence[float | None]) -> float | None:
    """The mean of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def geneval(scores: Sequence[RungScores], prompts: PromptSet) -> GenEvalSummary | None:
    """GenEval's numbers of one rung over its training seeds; None without a checker or a task without images.

    The images of a prompt, one for each training seed, are one trial of its interval.
    """
    if prompts.world is None or {prompt.tag for prompt in prompts.asked} != set(prompts.world.tasks):
        return None
    results = [
        GenEvalResult(prompt.tag, correct, group=place)
        for score in scores
        for place, (prompt, correct) in enumerate(zip(prompts.asked, score.passed or (), strict=True))
    ]
    return geneval_summary(results, tasks=prompts.world.tasks)


def paired_difference(
    scores: Sequence[RungScores], reference: Sequence[RungScores], measure: ImageValue = "passed"
) -> Difference | None:
    """How much more often than `reference` the images are right, or how much higher their CLIP score is.

    Prompt by prompt on the same image seeds, and trained model by trained model of the same training seed; what was
    not trained stands beside each of them. Over prompts and training seeds: see `trained_difference`.
    """
    ours, theirs = _by_seed(scores, measure), _by_seed(reference, measure)
    if not ours or not theirs:
        return None
    if None in ours and None in theirs:
        return difference(ours[None], theirs[None])
    if None in ours or None in theirs:
        pairs = [(one, other) for one in ours.values() for other in theirs.values()]
    elif not (pairs := [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]):
        raise InputError(f"difference: got training seeds {list(ours)} and {list(theirs)}, wanted some in common")
    return trained_difference(np.stack([one - other for one, other in pairs]))


def _by_seed(scores: Sequence[RungScores], measure: ImageValue) -> dict[int | None, npt.NDArray[np.float64]]:
    """Each training seed's value of every prompt, the mean over what it was drawn with (guidance)."""
    found: dict[int | None, list[npt.NDArray[np.float64]]] = {}
    for score in scores:
        if (values := getattr(score, measure)) is not None:
            found.setdefault(score.seed, []).append(np.asarray(values, dtype=np.float64))
    return {seed: np.mean(values, axis=0) for seed, values in found.items()}
