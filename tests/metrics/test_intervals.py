from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bitsfusion.errors import InputError
from bitsfusion.metrics.intervals import bootstrap_mean_interval, wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 10), (50, 100), (888, 1632), (7, 7)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(successes, trials, confidence):
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("arguments", [(1, 0), (3, 2), (-1, 2), (1, 2, 1.0)])
def test_wilson_refuses(arguments):
    with pytest.raises(InputError):
        wilson_interval(*arguments)


def test_bootstrap_matches_the_normal_interval_and_repeats():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_mean_interval(values)
    spread = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.03)
    assert bootstrap_mean_interval(values) == (low, high) != bootstrap_mean_interval(values, seed=1)
    narrow = bootstrap_mean_interval(values, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_of_few_values_is_as_wide_as_students_t():
    """No more samples of 10 around zero than promised leave zero out; plain percentiles leave it out in 10 %."""
    rng = np.random.default_rng(1)
    outside = 0
    for _ in range(500):
        low, high = bootstrap_mean_interval(rng.normal(size=10), resamples=500)
        outside += not low <= 0 <= high
    assert outside / 500 < 0.075
    values = rng.normal(size=10)
    half = stats.t.ppf(0.975, 9) * values.std(ddof=1) / np.sqrt(10)
    low, high = bootstrap_mean_interval(values, resamples=20_000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1)


def test_bootstrap_within_groups():
    sizes = {"a": 80, "b": 20, "c": 100}
    groups = [name for name, size in sizes.items() for _ in range(size)]
    ones = np.ones(len(groups))
    assert bootstrap_mean_interval(ones, groups) == (1.0, 1.0)
    # What groups differ in is no spread.
    values = np.array([{"a": 0.0, "b": 0.5, "c": 1.0}[name] for name in groups])
    assert bootstrap_mean_interval(values, groups) == (0.5, 0.5)
    noisy = values + np.random.default_rng(0).normal(size=len(groups))
    low, high = bootstrap_mean_interval(noisy, groups)
    spread = 1.96 * np.sqrt(sum(1 / size for size in sizes.values())) / 3
    assert high - low == pytest.approx(2 * spread, rel=0.15)


def test_bootstrap_refuses_no_values():
    with pytest.raises(InputError, match=r"\[0\]"):
        bootstrap_mean_interval([])
