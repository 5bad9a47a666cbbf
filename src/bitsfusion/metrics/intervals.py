"""Confidence intervals of the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from bitsfusion.errors import InputError


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, within [0, 1]; holds at 0 % and 100 %, where the normal one fails.

    `successes` may be a fraction, where a trial can succeed in part.

    Raises:
        InputError: no trials, or successes outside 0..trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(f"proportion: got {successes} of {trials}, wanted 0 <= successes <= trials and trials >= 1")
    _check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    center = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (center - spread) / scale
    high = 1.0 if successes == trials else (center + spread) / scale
    return low, high


def bootstrap_mean_interval(
    values: Sequence[float] | npt.NDArray[np.floating],
    groups: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` ([n], independent); the same for the same seed.

    For two models on the same prompts and seeds, pass the differences of their paired scores. The percentiles are a
    little further out than the confidence says, since resamples of n values spread less than samples do: by what
    Student's t has over the normal distribution (Hesterberg 2015, section 3.2).

    Args:
        groups: of each value, where the mean is that of the groups' means; values are resampled within their group.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise InputError(f"bootstrap: got values of shape {list(sample.shape)}, wanted [n] with n >= 1")
    names = np.asarray(groups if groups is not None else [""] * sample.size)
    parts = [sample[names == name] for name in np.unique(names)]
    rng = np.random.default_rng(seed)
    means = np.fromiter(
        (np.mean([part[rng.integers(part.size, size=part.size)].mean() for part in parts]) for _ in range(resamples)),
        np.float64,
        resamples,
    )
    tail = (1 - _expanded(confidence, sample.size, len(parts))) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _expanded(confidence: float, values: int, groups: int) -> float:
    _check_confidence(confidence)
    freedom = values - groups
    if freedom < 1:
        return confidence
    reach = np.sqrt(values / freedom) * student_t.ppf((1 + confidence) / 2, freedom)
    return min(float(2 * NormalDist().cdf(reach) - 1), 1 - 1e-12)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence: got {confidence}, wanted a number between 0 and 1")
