import dataclasses

import numpy as np
import pytest

from bitsfusion.embedded import SCORER_FOLDER
from bitsfusion.embedded.quick import QUICK
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.evaluation.rungs import RungScores, geneval, load_images, paired_difference, score_images
from bitsfusion.metrics.clip_score import ClipScorer


@pytest.fixture(scope="module")
def prompts():
    return world_prompts(QUICK, "test", 10, 0)


@pytest.fixture(scope="module")
def drawings(prompts):
    import random

    rng = random.Random(0)
    return np.stack([QUICK.draw(QUICK.sample_scene(prompt, rng)) for prompt in prompts.asked])


def scores(passed, name="stage1", seed=0):
    return RungScores(name, seed, passed, [0.6, 0.5] * 30, 0.01, 0.001, 0.02, 1.0)


def test_drawings_score_full_marks_and_shuffled_ones_do_not(prompts, drawings):
    scorer = ClipScorer.from_pretrained(SCORER_FOLDER)
    right = score_images(drawings, prompts, drawings, scorer)
    assert all(right["passed"])
    assert right["image_mse"] == 0
    wrong = score_images(np.roll(drawings, 17, axis=0), prompts, drawings, scorer)
    assert np.mean(wrong["passed"]) < 0.1
    assert np.mean(wrong["clip_scores"]) < np.mean(right["clip_scores"]) - 0.2
    assert wrong["image_mse"] > 0.001


def test_scores_and_images_survive_the_disk(tmp_path, drawings):
    written = scores([True] * 60)
    written.save(tmp_path / "rung", drawings)
    assert RungScores.load(tmp_path / "rung") == written
    assert np.array_equal(load_images(tmp_path / "rung"), drawings)


def test_the_overall_score_is_the_mean_of_the_tasks(prompts):
    passed = [prompt.tag != "position" for prompt in prompts.asked]
    summary = geneval([scores(passed), scores([True] * 60, seed=1)], prompts)
    assert summary.tasks["position"].accuracy == 0.5
    assert summary.tasks["position"].images == 20
    assert summary.overall == pytest.approx(5.5 / 6)


def test_another_training_seed_is_no_new_prompt(prompts):
    passed = [prompt.tag != "position" or place % 2 == 0 for place, prompt in enumerate(prompts.asked)]
    once, thrice = geneval([scores(passed)], prompts), geneval([scores(passed, seed=s) for s in range(3)], prompts)
    assert thrice.tasks["position"].images == 30
    assert (thrice.tasks["position"].low, thrice.tasks["position"].high) == pytest.approx(
        (once.tasks["position"].low, once.tasks["position"].high)
    )
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, abs=0.01)


def test_paired_difference_is_exact_where_all_prompts_agree():
    ours, theirs = [scores([True] * 40 + [False] * 20)], [scores([True] * 40 + [False] * 20, "full_precision", None)]
    same = paired_difference(ours, theirs)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    worse = [dataclasses.replace(ours[0], passed=[True] * 10 + [False] * 50)]
    difference = paired_difference(worse, theirs)
    assert difference.mean == pytest.approx(-0.5)
    assert difference.low < -0.5 < difference.high < 0


def test_the_clip_score_is_paired_over_prompts_too():
    reference = [scores(None, "full_precision", None)]
    higher = [
        dataclasses.replace(reference[0], clip_scores=[0.6 + 0.1 * (i % 3) for i in range(60)], seed=seed)
        for seed in (0, 1)
    ]
    assert reference[0].clip_score == pytest.approx(0.55)
    difference = paired_difference(higher, reference, "clip_scores")
    assert difference.mean == pytest.approx(0.15)
    assert 0 < difference.low < 0.15 < difference.high


def test_no_checker_no_marks():
    unmarked = dataclasses.replace(scores(None), clip_scores=None)
    assert unmarked.clip_score is None
    assert paired_difference([unmarked], [unmarked]) is None
    assert paired_difference([unmarked], [unmarked], "clip_scores") is None
