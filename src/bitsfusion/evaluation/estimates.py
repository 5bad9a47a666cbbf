"""Means over prompts with their intervals, and what may be said of a difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from bitsfusion.metrics.intervals import bootstrap_mean_interval

FEWEST = 6
"""Prompts below which nothing is shown: that all of five go one way happens by chance more often than in 5 % (2 / 2^5),
and the bootstrap of so few has intervals that are far too narrow, of one prompt none at all."""


class Verdict(str, Enum):
    """What a paired difference shows; anything but NONE only of enough prompts, where its interval excludes zero."""

    BETTER = "better"
    WORSE = "worse"
    NONE = "no difference shown"


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its 95 % bootstrap interval over prompts."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """Of two models on the same prompts and seeds."""

    verdict: Verdict


def estimate(
    values: Sequence[float] | npt.NDArray[np.float64], images_per_prompt: int = 1, groups: Sequence[str] | None = None
) -> Estimate:
    """Of per-image `values` ([prompts x images_per_prompt], the images of a prompt beside each other).

    Prompts are resampled, their images averaged: the interval speaks of new prompts.

    Args:
        groups: of each image, where the mean is that of the groups' means (GenEval's tasks): resampled within.
    """
    prompts = np.asarray(values, dtype=np.float64).reshape(-1, images_per_prompt).mean(1)
    of_prompts = groups if groups is None else list(groups)[::images_per_prompt]
    names = np.asarray(of_prompts or [""] * len(prompts))
    mean = float(np.mean([prompts[names == name].mean() for name in np.unique(names)]))
    return Estimate(mean, *bootstrap_mean_interval(prompts, of_prompts))


def difference(
    values: Sequence[float] | npt.NDArray[np.float64],
    others: Sequence[float] | npt.NDArray[np.float64],
    higher_is_better: bool,
    images_per_prompt: int = 1,
    groups: Sequence[str] | None = None,
) -> Difference:
    """`values` minus `others`, image by image; see `estimate`."""
    change = np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    paired = estimate(change, images_per_prompt, groups)
    shown = len(values) >= FEWEST * images_per_prompt and (paired.low > 0 or paired.high < 0)
    verdict = Verdict.NONE
    if shown:
        verdict = Verdict.BETTER if (paired.mean > 0) == higher_is_better else Verdict.WORSE
    return Difference(paired.mean, paired.low, paired.high, verdict)
