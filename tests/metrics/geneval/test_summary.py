from __future__ import annotations

import pytest

from bitsfusion.embedded.world import TASKS
from bitsfusion.errors import InputError
from bitsfusion.metrics.geneval import GenEvalResult, geneval_summary


def results(counts: dict[str, tuple[int, int]]) -> list[GenEvalResult]:
    return [GenEvalResult(tag, k < correct) for tag, (correct, images) in counts.items() for k in range(images)]


def test_tasks_count_the_same_however_many_images_they_have():
    counts = dict.fromkeys(TASKS, (0, 10)) | {"counting": (100, 100), "colors": (1, 2)}
    summary = geneval_summary(results(counts))
    assert summary.overall == pytest.approx(1.5 / 6)
    assert summary.tasks["counting"].accuracy == 1
    assert summary.tasks["colors"].low == pytest.approx(0.0945, abs=1e-3)  # Wilson, 1 of 2
    assert summary.low < summary.overall < summary.high
    assert summary.scores() == {
        "overall": summary.overall,
        "tasks": {tag: correct / images for tag, (correct, images) in counts.items()},
    }


def test_interval_of_the_overall_narrows_with_images_and_repeats():
    few = geneval_summary(results(dict.fromkeys(TASKS, (5, 10))))
    many = geneval_summary(results(dict.fromkeys(TASKS, (500, 1000))))
    # Standard error of the mean of six independent shares: sqrt(.25 / n / 6).
    assert few.high - few.low == pytest.approx(2 * 1.96 * (0.25 / 10 / 6) ** 0.5, rel=0.1)
    assert many.high - many.low == pytest.approx(2 * 1.96 * (0.25 / 1000 / 6) ** 0.5, rel=0.1)
    assert geneval_summary(results(dict.fromkeys(TASKS, (5, 10)))) == few


def test_images_of_one_group_count_once():
    """The same images three times over say nothing new; three times as many independent ones do."""
    once = results(dict.fromkeys(TASKS, (5, 10)))
    numbered = [GenEvalResult(result.tag, result.correct, number) for number, result in enumerate(once)]
    alone, copied = geneval_summary(once), geneval_summary(numbered * 3)
    assert copied.overall == alone.overall
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert geneval_summary(numbered) == alone
    for tag in TASKS:
        assert (copied.tasks[tag].correct, copied.tasks[tag].images) == (15, 30)
        assert (copied.tasks[tag].low, copied.tasks[tag].high) == (alone.tasks[tag].low, alone.tasks[tag].high)
    apart = geneval_summary(once * 3)
    assert apart.high - apart.low == pytest.approx((alone.high - alone.low) / 3**0.5, rel=0.1)


def test_groups_that_differ_within_give_a_narrower_interval_than_those_that_agree():
    agree = [GenEvalResult(tag, group < 10, group) for tag in TASKS for group in range(20) for _ in range(2)]
    differ = [GenEvalResult(tag, image == 0, group) for tag in TASKS for group in range(20) for image in range(2)]
    assert geneval_summary(differ).low == geneval_summary(differ).high == 0.5
    wide = geneval_summary(agree)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * (0.25 / 20 / 6) ** 0.5, rel=0.1)


def test_refuses_unknown_and_missing_tasks():
    with pytest.raises(InputError, match="'shapes'"):
        geneval_summary([GenEvalResult("shapes", True)])
    with pytest.raises(InputError, match="no image for two_object, counting"):
        geneval_summary([GenEvalResult("single_object", True)])
