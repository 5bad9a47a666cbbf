"""The tables' rows, their plan, and how figures are put together; all without training anything."""

import dataclasses
import itertools

import pytest

from bitsfusion.errors import InputError
from bitsfusion.evaluation.rungs import RungScores
from bitsfusion.io.schema import parse
from bitsfusion.numerics import ScaleInit
from bitsfusion.recipe.assign import Strategy
from bitsfusion_lab.reproduction.order import orders
from bitsfusion_lab.reproduction.plan import plan
from bitsfusion_lab.reproduction.settings import Settings
from bitsfusion_lab.reproduction.student import Levels, Student
from bitsfusion_lab.reproduction.table import _measured
from bitsfusion_lab.reproduction.tables import TABLES, chosen_tables


def subjects(number):
    return [row.subject for row in TABLES[number]().rows if row.subject is not None]


def test_each_rung_changes_one_thing():
    rungs = subjects(4)
    assert rungs[0] == Student(Levels.LSQ, None, scale_init=ScaleInit.MINMAX)
    for before, after in itertools.pairwise(rungs):
        changed = [f.name for f in dataclasses.fields(Student) if getattr(before, f.name) != getattr(after, f.name)]
        assert len(changed) == 1, (before, after)
    assert rungs[-1].strategy is Strategy.OPTIMAL
    assert rungs[-1].scale_init is ScaleInit.EXACT


@pytest.mark.parametrize(("number", "field"), [(5, "eta"), (6, "feature_weight"), (7, "timesteps")])
def test_a_sweep_changes_its_own_choice_alone(number, field):
    arms = subjects(number)
    assert len({getattr(arm, field) for arm in arms}) == len(arms)
    assert len({dataclasses.replace(arm, **{field: getattr(arms[0], field)}) for arm in arms}) == 1


def test_names_tell_all_arms_apart():
    every = {subject for number in TABLES for subject in subjects(number)}
    assert len({subject.name for subject in every}) == len(every)


def test_published_scores_are_those_of_the_paper():
    table4 = TABLES[4]()
    assert [row.published for row in table4.rows][:7] == [0.2797, 0.3054, 0.3100, 0.3118, 0.3142, 0.3156, 0.3183]
    assert table4.published_full_precision == 0.3156
    assert TABLES[3]().published_full_precision == 0.3175


def test_the_plan_counts_each_arm_once():
    settings = Settings(seeds=(0, 1), steps=10, per_task=2)
    # Six Stage I trainings up to time sampling; fine-tuning starts from the last; three more of both stages.
    assert plan([TABLES[4]()], settings).training_steps == 2 * (6 * 10 + 5 + 3 * (10 + 5))
    assert plan([TABLES[4]()], settings).images == (1 + 10 * 2) * 12
    together, apart = plan([TABLES[4](), TABLES[7]()], settings), [plan([TABLES[n]()], settings) for n in (4, 7)]
    shared = 2  # Beta(3, 1) is a rung of the ladder, and so is uniform
    assert together.arms == sum(one.arms for one in apart) - shared
    more = plan([TABLES[4]()], Settings(seeds=(0, 1), steps=10, per_task=2, guidance=(3.5, 7.5)))
    assert more.images == 2 * plan([TABLES[4]()], settings).images


def scores(passed, clip, seed=0):
    return RungScores("x", seed, passed, [clip] * len(passed), 0.5, 0.25, 0.125, 1.0)


def test_means_and_spreads_are_over_seeds():
    whole = [scores([True, True, True, True], 0.9)]
    groups = [[scores([True, False, True, False], 0.2)], [scores([True, True, True, False], 0.4)]]
    line = _measured("x", "x", groups, whole, None)
    assert line["geneval"]["seeds"] == [0.5, 0.75]
    assert line["geneval"]["mean"] == 0.625
    assert line["geneval"]["spread"] == pytest.approx(0.25 / 2**0.5)
    assert line["clip_score"]["mean"] == pytest.approx(0.3)
    assert line["against_full_precision"]["mean"] == -0.375
    assert _measured("x", "x", groups[:1], whole, None)["geneval"]["spread"] is None
    assert _measured("x", "x", groups, whole, groups)["against_row_above"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_the_papers_order():
    right, wrong = [True] * 40, [False] * 40

    def trained(passed, clip=0):
        """Three trainings, one of which drew one image otherwise."""
        return [scores(passed, clip), scores(passed, clip, 1), scores([not passed[0], *passed[1:]], clip, 2)]

    measured = {"a": trained(wrong), "b": trained(right), "c": trained(right), "d": trained(wrong)}
    published = {"a": 0.1, "b": 0.2, "unpublished": None, "c": 0.3, "d": 0.4, "unmeasured": 0.5}
    steps = orders(published, measured, True, "passed")
    assert [(one.better, one.worse, one.verdict) for one in steps] == [
        ("b", "a", "holds"),
        ("c", "b", "not told apart"),
        ("d", "c", "reversed"),
    ]
    best = orders(published, measured, False, "passed")
    assert [(one.better, one.worse, one.verdict) for one in best] == [
        ("d", "a", "not told apart"),
        ("d", "b", "reversed"),
        ("d", "c", "reversed"),
    ]
    assert best[0].published == pytest.approx(0.3)
    falling = orders({"x": 0.9, "y": 0.1}, {"x": measured["b"], "y": measured["a"]}, True, "passed")
    assert [(one.better, one.worse, one.verdict) for one in falling] == [("x", "y", "holds")]
    by_clip = {"x": trained(wrong, 0.5), "y": trained(right, 0.75)}
    (judged,) = orders({"x": 0.9, "y": 0.1}, by_clip, True, "clip_scores")
    assert (judged.verdict, judged.mean) == ("reversed", -0.25)
    once = {name: group[:1] for name, group in measured.items()}
    assert {one.verdict for one in orders(published, once, True, "passed")} == {"not told apart"}


@pytest.mark.parametrize("text", ["2", "4,8", "", "four"])
def test_other_tables_are_refused(text):
    with pytest.raises(InputError, match="table"):
        chosen_tables(text)


def test_all_tables():
    assert [table.number for table in chosen_tables("all")] == [3, 4, 5, 6, 7]
    assert [table.number for table in chosen_tables("7, 4,7")] == [7, 4]


@pytest.mark.parametrize(
    "values", [{"seeds": ()}, {"seeds": (1, 1)}, {"seeds": (-1,)}, {"guidance": (2.5, 2.5)}, {"steps": 0}], ids=str
)
def test_settings_that_make_no_table_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        parse(Settings, values, "reproduce")
