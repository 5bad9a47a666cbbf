from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from bitsfusion.evaluation.estimates import FEWEST, Verdict, difference, holm, trained_difference, verdicts


def verdict(found):
    (shown,) = verdicts([found])
    return shown


@pytest.mark.parametrize("images", [1, 4])
def test_a_few_prompts_show_nothing(images):
    """Not even where all of them go one way, and however many images they have."""
    ones = np.ones(FEWEST * images)
    assert verdict(difference(ones[images:], ones[images:] - 1, images)) is Verdict.NONE
    assert verdict(difference(ones, ones - 1, images)) is Verdict.BETTER
    assert verdict(difference(ones - 1, ones, images)) is Verdict.WORSE


def test_the_fewest_are_those_of_the_sign_test():
    """All of n fair coins fall alike with 2 / 2^n: below 5 % from FEWEST on."""
    assert 2 / 2**FEWEST < 0.05 < 2 / 2 ** (FEWEST - 1)


def test_images_of_a_prompt_are_no_evidence_of_their_own():
    """Few of 60 comparisons of equal models on 40 prompts, 5 like images each, show a difference.

    Were images resampled instead of prompts, more than a third would.
    """
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(60):
        ours, theirs = (np.repeat(rng.normal(size=40), 5) + 0.1 * rng.normal(size=200) for _ in range(2))
        wrong += verdict(difference(ours, theirs, 5)) is not Verdict.NONE
    assert wrong / 60 < 0.2


def trainings(rng, seeds, prompts, of_seed, of_prompt, of_image):
    """Differences [seeds, prompts] of two methods that are equally good."""
    return (
        of_seed * rng.normal(size=(seeds, 1))
        + of_prompt * rng.normal(size=prompts)
        + of_image * rng.normal(size=(seeds, prompts))
    )


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seed", [0.0, 0.1, 1.0])
def test_the_interval_holds_what_it_promises(seeds, of_seed):
    """Whether training seeds matter much, little or not at all, 95 % of the intervals or more hold the truth, zero."""
    rng, outside = np.random.default_rng(seeds), 0
    for _ in range(1000):
        found = trained_difference(trainings(rng, seeds, 60, of_seed, 0.5, 0.5))
        outside += not found.low <= 0 <= found.high
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert outside / 1000 < 0.075


def test_prompts_alone_promise_too_much():
    """The same differences, with an interval over prompts alone: most of them leave zero out where seeds matter."""
    rng, outside = np.random.default_rng(0), 0
    for _ in range(50):
        change = trainings(rng, 3, 300, 0.1, 0.3, 0.3).mean(0)
        found = difference(change, np.zeros(300))
        outside += not found.low <= 0 <= found.high
    assert outside / 50 > 0.3


def test_one_training_has_no_verdict():
    change = 1 + 0.1 * np.random.default_rng(0).normal(size=(3, 40))
    once, thrice = trained_difference(change[:1]), trained_difference(change)
    assert once.low > 0 and once.p < 0.05 and once.training_seeds == 1
    assert (verdict(once), verdict(thrice)) == (Verdict.NONE, Verdict.BETTER)
    assert verdict(dataclasses.replace(once, training_seeds=None)) is Verdict.BETTER


def test_ten_rows_of_equal_methods_are_rarely_told_apart():
    """At least one wrong verdict in at most 5 % of tables; uncorrected it would be in 40 %."""
    rng, corrected, plain = np.random.default_rng(3), 0, 0
    for _ in range(200):
        rows = [trained_difference(trainings(rng, 3, 40, 0.1, 0.5, 0.5)) for _ in range(10)]
        corrected += any(shown is not Verdict.NONE for shown in verdicts(rows))
        plain += any(verdict(row) is not Verdict.NONE for row in rows)
    assert corrected / 200 < 0.09
    assert plain / 200 > 0.2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_no_correction_and_bonferronis(chances):
    found = holm(chances)
    for p, corrected in zip(chances, found, strict=True):
        assert p <= corrected <= min(1, len(chances) * p) or corrected == pytest.approx(min(1, len(chances) * p))
    order = np.argsort(chances)
    assert np.all(np.diff(np.asarray(found)[order]) >= 0)
    assert all(np.asarray(found) >= false_discovery_control(chances) - 1e-12)  # which controls less


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
