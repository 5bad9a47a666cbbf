"""Means over prompts with their intervals, differences of two models, and what may be said of several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from bitsfusion.metrics.intervals import bootstrap_mean_interval

FEWEST = 6
"""Fewer prompts than this show nothing: five of five agree by chance more often than in 5 % of cases (2 / 2^5), and
bootstrap intervals of so few are far too narrow."""
LEVEL = 0.05
"""The probability of any wrong verdict among those that are reported together."""

Values: TypeAlias = Sequence[float] | npt.NDArray[np.float64]


class Verdict(str, Enum):
    """What a paired difference shows (see `verdicts`)."""

    BETTER = "better"
    WORSE = "worse"
    NONE = "no difference shown"


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference of two models on the same prompts and image seeds.

    Fields:
        p: the chance of a difference as large if there were none, by Student's t (two-sided, of this one alone).
        prompts: how many there are.
        training_seeds: how many trainings the interval spans; None where the models themselves are compared, and not
            the methods that trained them.
    """

    p: float
    prompts: int
    training_seeds: int | None = None


def estimate(values: Values, images_per_prompt: int = 1, groups: Sequence[str] | None = None) -> Estimate:
    """The mean of per-image `values` ([prompts x images_per_prompt], the images of a prompt beside each other).

    Prompts are resampled (bootstrap), their images averaged: the interval speaks of new prompts.

    Args:
        groups: of each image, where the mean is that of the groups' means (GenEval's tasks): resampled within.
    """
    prompts, names = _by_prompt(values, images_per_prompt, groups)
    mean = float(np.mean([part.mean() for part in _parts(prompts, names)]))
    return Estimate(mean, *bootstrap_mean_interval(prompts, names))


def difference(
    values: Values, others: Values, images_per_prompt: int = 1, groups: Sequence[str] | None = None
) -> Difference:
    """`values` minus `others`, image by image, of two given models: over prompts alone; see `estimate`."""
    change = np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    found = estimate(change, images_per_prompt, groups)
    prompts, names = _by_prompt(change, images_per_prompt, groups)
    parts = _parts(prompts, names)
    variance = sum(part.var(ddof=1) / len(part) for part in parts if len(part) > 1) / len(parts) ** 2
    p = _chance(found.mean, float(variance), len(prompts) - len(parts))
    return Difference(found.mean, found.low, found.high, p, len(prompts))


def trained_difference(change: npt.NDArray[np.float64]) -> Difference:
    """The difference of two methods, from `change` [training seeds, prompts]: over new prompts and new trainings.

    Seeds and prompts are crossed random effects. The mean's variance is that of prompts plus what training seeds add
    beyond the noise of single images (the two-way analysis of variance of multi-reader studies; Dorfman, Berbaum and
    Metz 1992), with Satterthwaite's degrees of freedom. One seed alone has an interval over prompts, and no verdict.
    """
    seeds, prompts = change.shape
    if seeds == 1 or prompts == 1:
        alone = difference(change.mean(0), np.zeros(prompts))
        return Difference(alone.mean, alone.low, alone.high, alone.p, prompts, seeds)
    mean, by_seed, by_prompt = float(change.mean()), change.mean(1), change.mean(0)
    residual = change - by_seed[:, None] - by_prompt + mean
    freedom = np.array([prompts - 1, seeds - 1, (prompts - 1) * (seeds - 1)], dtype=np.float64)
    parts = np.array(
        [
            by_prompt.var(ddof=1) / prompts,
            by_seed.var(ddof=1) / seeds,
            np.square(residual).sum() / freedom[2] / change.size,
        ]
    )
    if parts[1] <= parts[2]:  # seeds differ by no more than single images do
        variance, left = float(parts[0]), float(freedom[0])
    else:
        variance = float(parts[0] + parts[1] - parts[2])
        left = variance**2 / float((parts**2 / freedom).sum())
    half = float(student_t.ppf(1 - LEVEL / 2, left)) * variance**0.5
    return Difference(mean, mean - half, mean + half, _chance(mean, variance, left), prompts, seeds)


def holm(chances: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): of any wrong rejection below a level among all of them."""
    order = np.argsort(chances)
    corrected = np.asarray(chances, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    result = np.empty(len(order))
    result[order] = np.minimum(np.maximum.accumulate(corrected), 1)
    return [float(p) for p in result]


def verdicts(differences: Sequence[Difference]) -> list[Verdict]:
    """What each of several differences, higher being better, shows: all that are reported together go in.

    Something is shown only of `FEWEST` prompts or more and of two training seeds or more, where the interval excludes
    zero and the p-value, corrected by `holm`, is below `LEVEL`.
    """
    return [
        Verdict.NONE
        if p >= LEVEL or one.low <= 0 <= one.high or one.prompts < FEWEST or one.training_seeds == 1
        else (Verdict.BETTER if one.mean > 0 else Verdict.WORSE)
        for one, p in zip(differences, holm([one.p for one in differences]), strict=True)
    ]


def _by_prompt(
    values: Values, images_per_prompt: int, groups: Sequence[str] | None
) -> tuple[npt.NDArray[np.float64], list[str]]:
    """The mean of each prompt, and its group."""
    prompts = np.asarray(values, dtype=np.float64).reshape(-1, images_per_prompt).mean(1)
    return prompts, [""] * len(prompts) if groups is None else list(groups)[::images_per_prompt]


def _parts(prompts: npt.NDArray[np.float64], names: Sequence[str]) -> list[npt.NDArray[np.float64]]:
    """The prompts of each group."""
    return [prompts[np.asarray(names) == name] for name in np.unique(names)]


def _chance(mean: float, variance: float, freedom: float) -> float:
    """The chance of a mean as far from zero as `mean`; 1 where there is nothing to tell its spread from."""
    if mean == 0 or freedom < 1:
        return 1.0
    return 0.0 if variance == 0 else float(2 * student_t.sf(abs(mean) / variance**0.5, freedom))
