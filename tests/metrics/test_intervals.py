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


def test_bootstrap_refuses_no_values():
    with pytest.raises(InputError, match=r"\[0\]"):
        bootstrap_mean_interval([])
