"""Hand-made detections with the verdict and the words that the published evaluator gives for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitsfusion.metrics.geneval.prompts import GenEvalPrompt
from bitsfusion.metrics.geneval.scoring import Detection, Thresholds, Verdict, judge, kept, overlap, relations


def at(left, top, score=0.9, size=10):
    return Detection((left, top, left + size, top + size), score)


def verdict(include, objects, exclude=(), colors=None, tag="two_object"):
    """`colors`: the name of each object's colour by its left edge."""
    prompt = GenEvalPrompt.model_validate({"tag": tag, "include": include, "exclude": exclude, "prompt": "p"})
    return judge(objects, prompt, lambda found, name: [colors[item.box[0]] for item in found])


DOG, CAT = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
RIGHT = CAT | {"position": ["right of", 0]}
TWO = {"class": "dog", "count": 2}


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ({"dog": [at(0, 0)]}, ""),
        ({"dog": [at(0, 0), at(20, 0)], "cat": [at(5, 5)]}, ""),  # more than asked for is no mistake
        ({"cat": [at(0, 0)]}, "expected dog>=1, found 0"),
        ({}, "expected dog>=1, found 0"),
    ],
)
def test_single_object(objects, reason):
    assert verdict([DOG], objects, tag="single_object") == Verdict(not reason, reason)


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ({"dog": [at(0, 0)], "cat": [at(0, 0)]}, ""),
        ({"dog": [at(0, 0)]}, "expected cat>=1, found 0"),
        ({}, "expected dog>=1, found 0\nexpected cat>=1, found 0"),
    ],
)
def test_two_objects(objects, reason):
    assert verdict([DOG, CAT], objects) == Verdict(not reason, reason)


@pytest.mark.parametrize(("tag", "threshold"), [("colors", 0.3), ("counting", 0.9)])
def test_a_confidence_of_the_threshold_itself_does_not_count(tag, threshold):
    """The published evaluator compares float32 arrays: float32(.3), which is .30000001192..., is not above .3 there."""
    least = np.float32(threshold)
    scores = [least, np.nextafter(least, np.float32(1)), np.nextafter(least, np.float32(0))]
    official = [float(score) for score in scores if np.array([score], np.float32)[0] > least]
    found = kept({"dog": [at(0, 0, float(score)) for score in scores]}, tag)["dog"]
    assert [item.score for item in found] == official == [float(scores[1])]


@pytest.mark.parametrize(
    ("count", "reason"),
    [(0, "expected dog>=2, found 0"), (1, "expected dog>=2, found 1"), (2, ""), (3, "expected dog<3, found 3")],
)
def test_counting_with_its_exclusion(count, reason):
    found = verdict([TWO], {"dog": [at(20 * k, 0) for k in range(count)]}, [DOG | {"count": 3}], tag="counting")
    assert found == Verdict(not reason, reason)


def test_exclusions_hold_for_other_classes_and_add_to_the_reasons():
    found = verdict([DOG], {"cat": [at(0, 0), at(9, 9)]}, [CAT, {"class": "cow", "count": 1}])
    assert found == Verdict(False, "expected dog>=1, found 0\nexpected cat<1, found 2")


@pytest.mark.parametrize(
    ("colors", "reason"),
    [
        ({0: "red"}, ""),
        ({0: "blue"}, "expected red dog>=1, found 0 red; and 1 blue"),
    ],
)
def test_colors(colors, reason):
    found = verdict([DOG | {"color": "red"}], {"dog": [at(0, 0)]}, colors=colors, tag="colors")
    assert found == Verdict(not reason, reason)


def test_colors_are_those_of_the_most_confident_objects_only():
    objects = {"dog": [at(0, 0), at(20, 0), at(40, 0)]}
    asked = [TWO | {"color": "red"}]
    assert verdict(asked, objects, colors={0: "red", 20: "red", 40: "blue"}).correct
    found = verdict(asked, objects, colors={0: "white", 20: "red", 40: "red"})
    assert found.reason == "expected red dog>=2, found 1 red; and 1 red, 1 white"  # in the list's order


def test_attributes_of_two_objects():
    asked = [DOG | {"color": "red"}, CAT | {"color": "green"}]
    objects = {"dog": [at(0, 0)], "cat": [at(30, 0)]}
    assert verdict(asked, objects, colors={0: "red", 30: "green"}, tag="color_attr") == Verdict(True, "")
    swapped = verdict(asked, objects, colors={0: "green", 30: "red"}, tag="color_attr")
    assert swapped.reason.splitlines() == [
        "expected red dog>=1, found 0 red; and 1 green",
        "expected green cat>=1, found 0 green; and 1 red",
    ]


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ({"dog": [at(0, 0)], "cat": [at(40, 0)]}, ""),
        ({"dog": [at(40, 0)], "cat": [at(0, 0)]}, "expected cat right of target, found left of target"),
        ({"dog": [at(0, 0)], "cat": [at(40, 40)]}, ""),  # a diagonal is both
        ({"dog": [at(0, 40)], "cat": [at(0, 0)]}, "expected cat right of target, found above target"),
        ({"dog": [at(40, 40)], "cat": [at(0, 0)]}, "expected cat right of target, found left of and above target"),
        ({"dog": [at(0, 0)], "cat": [at(1, 0)]}, "expected cat right of target, found  target"),
        ({"cat": [at(0, 0)]}, "expected dog>=1, found 0\nno target for cat to be right of"),
        ({"dog": [at(0, 0)]}, "expected cat>=1, found 0"),
    ],
)
def test_positions(objects, reason):
    assert verdict([DOG, RIGHT], objects, tag="position") == Verdict(not reason, reason)


def test_no_target_where_the_target_has_the_wrong_colour():
    asked = [DOG | {"color": "red"}, RIGHT]
    found = verdict(asked, {"dog": [at(0, 0)], "cat": [at(40, 0)]}, colors={0: "blue"}, tag="position")
    assert found.reason.splitlines()[1] == "no target for cat to be right of"


def test_the_threshold_of_a_position_is_a_share_of_both_sizes():
    # Sizes 10 and 10: an offset of up to 2 pixels is none; of 4, two are left, and 2 / 4 is not more than a half.
    box = (0, 0, 10, 10)
    assert relations((2, 0, 12, 10), box) == ()
    assert relations((4, 0, 14, 10), box) == ()
    assert relations((4.1, 0, 14.1, 10), box) == ("right of",)
    assert relations((4, 0, 14, 10), box, threshold=0) == ("right of",)
    assert relations((0, 30, 10, 40), box) == ("below",)
    assert relations(box, box) == ()


boxes = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 30)] * 2).map(
    lambda values: (values[0], values[1], values[0] + values[2], values[1] + values[3])
)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@given(boxes, boxes)
def test_relations_are_opposite_from_the_other_side(box, target):
    assert {OPPOSITE[name] for name in relations(box, target)} == set(relations(target, box))


def test_confidence_is_higher_for_counting_and_strict():
    seen = {"dog": [at(0, 0, 0.3), at(1, 0, 0.31), at(2, 0, 0.95), at(3, 0, 0.9)], "cat": [at(0, 0, 0.2)]}
    assert {name: [item.score for item in items] for name, items in kept(seen, "colors").items()} == {
        "dog": [0.95, 0.9, 0.31]
    }
    assert [item.score for item in kept(seen, "counting")["dog"]] == [0.95]


def test_at_most_sixteen_objects_and_no_suppression_as_published():
    seen = {"dog": [at(0, 0, 0.5 + k / 100) for k in range(20)]}
    assert [item.score for item in kept(seen, "colors")["dog"]] == [0.5 + k / 100 for k in reversed(range(4, 20))]


def test_suppression_keeps_the_more_confident_of_two_that_overlap():
    seen = {"dog": [at(0, 0, 0.5), at(1, 0, 0.8), at(30, 0, 0.4)]}
    assert overlap(seen["dog"][0].box, seen["dog"][1].box) == pytest.approx(10 * 11 / (2 * 121 - 110))
    few = kept(seen, "colors", Thresholds(max_overlap=0.5))["dog"]
    assert [item.score for item in few] == [0.8, 0.4]
    assert len(kept(seen, "colors", Thresholds(max_overlap=0.9))["dog"]) == 3
