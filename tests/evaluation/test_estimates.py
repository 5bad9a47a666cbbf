from __future__ import annotations

import numpy as np
import pytest

from bitsfusion.evaluation.estimates import FEWEST, Verdict, difference


@pytest.mark.parametrize("images", [1, 4])
def test_a_few_prompts_show_nothing(images):
    """Not even where all of them go one way, and however many images they have."""
    ones = np.ones(FEWEST * images)
    assert difference(ones[images:], ones[images:] - 1, True, images).verdict is Verdict.NONE
    assert difference(ones, ones - 1, True, images).verdict is Verdict.BETTER
    assert difference(ones - 1, ones, True, images).verdict is Verdict.WORSE
    assert difference(ones, ones - 1, False, images).verdict is Verdict.WORSE


def test_the_fewest_are_those_of_the_sign_test():
    """Of n fair coins all fall alike with 2 / 2^n: below 5 % from FEWEST on."""
    assert 2 / 2**FEWEST < 0.05 < 2 / 2 ** (FEWEST - 1)


def test_images_of_a_prompt_are_no_evidence_of_their_own():
    """Of 60 comparisons of equal models on 40 prompts, 5 like images each, few say that there is a difference.

    Were images resampled instead of prompts, more than a third would.
    """
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(60):
        ours, theirs = (np.repeat(rng.normal(size=40), 5) + 0.1 * rng.normal(size=200) for _ in range(2))
        wrong += difference(ours, theirs, True, 5).verdict is not Verdict.NONE
    assert wrong / 60 < 0.2
