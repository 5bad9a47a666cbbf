"""GenEval's verdict on one image from the objects seen in it (Ghosh et al. 2023, section 3).

The rules, thresholds and the words of the reasons are the published evaluator's (djghosh13/geneval,
evaluate_images.py), so that result files can be laid beside each other. It has no exact test of counts for anything but
counting: more objects than asked for are no mistake unless an `exclude` clause says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitsfusion.metrics.geneval.prompts import COLORS, RELATIONS, Clause, GenEvalPrompt

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom are the first that do not belong to the object."""


@dataclass(frozen=True)
class Detection:
    """One object seen in an image.

    Fields:
        score: the detector's confidence, 0 to 1.
        mask: [h, w] bool of the whole image, or None where the detector has no masks.
    """

    box: Box
    score: float
    mask: npt.NDArray[np.bool_] | None = field(default=None, compare=False)


Detections = Mapping[str, Sequence[Detection]]
"""Class name -> its detections; a class that was not seen is absent or empty."""

ColorNames = Callable[[Sequence[Detection], str], Sequence[str]]
"""The colour's name of each object of a class, in the image that is judged."""


@dataclass(frozen=True)
class Thresholds:
    """The evaluator's constants, and their published values.

    Fields:
        confidence, counting_confidence: an object counts above this; the second is for the task counting.
        max_objects: the most confident of each class that are looked at.
        max_overlap: of the boxes of a class; of two that overlap as much or more the less confident one goes;
            at 1 none does.
        position: share of both objects' sizes that an offset has to exceed.
    """

    confidence: float = 0.3
    counting_confidence: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position: float = 0.1


PUBLISHED = Thresholds()


@dataclass(frozen=True)
class Verdict:
    """Whether the image shows what was asked, and the reasons if not, one a line."""

    correct: bool
    reason: str


def kept(detections: Detections, tag: str, thresholds: Thresholds = PUBLISHED) -> dict[str, list[Detection]]:
    """The objects that count in an image of task `tag`, the most confident first; classes without any are absent.

    Confidences are compared in float32, as the published evaluator's arrays are: one of float32(.3) is not above .3.
    """
    least = np.float32(thresholds.counting_confidence if tag == "counting" else thresholds.confidence)
    found: dict[str, list[Detection]] = {}
    for name, seen in detections.items():
        by_score = [seen[i] for i in np.argsort([item.score for item in seen])[::-1]]
        candidates = [item for item in by_score if np.float32(item.score) > least][: thresholds.max_objects]
        chosen: list[Detection] = []
        for item in candidates:
            if thresholds.max_overlap == 1 or all(
                overlap(item.box, other.box) < thresholds.max_overlap for other in chosen
            ):
                chosen.append(item)
        if chosen:
            found[name] = chosen
    return found


def overlap(box: Box, other: Box) -> float:
    """Intersection over union, with a pixel added to each side as the evaluator does."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    shared = area(max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))
    union = area(*box) + area(*other) - shared
    return shared / union if union else 0.0


def relations(box: Box, target: Box, threshold: float = 0.1) -> tuple[str, ...]:
    """How `box` stands to `target`: none, one or two of `RELATIONS`.

    Of the centres' offset, each axis loses `threshold` times both sizes; what is left, over the length of the whole
    offset, has to exceed a half.
    """
    first, second = np.asarray(box, dtype=float).reshape(2, 2), np.asarray(target, dtype=float).reshape(2, 2)
    offset = first.mean(0) - second.mean(0)
    slack = threshold * (abs(first[1] - first[0]) + abs(second[1] - second[0]))
    left = np.maximum(abs(offset) - slack, 0) * np.sign(offset)
    if (abs(left) < 1e-3).all():
        return ()
    x, y = left / np.linalg.norm(offset)
    return tuple(name for name, holds in zip(RELATIONS, (x < -0.5, x > 0.5, y < -0.5, y > 0.5), strict=True) if holds)


def judge(
    objects: Detections,
    prompt: GenEvalPrompt,
    colors: ColorNames,
    thresholds: Thresholds = PUBLISHED,
) -> Verdict:
    """The verdict on an image with the `objects` that count (`kept`).

    Of each class the first `count` objects are looked at, for colours and positions too. A clause that asks for a
    position is met if each of its objects stands so to each object of the clause it names.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in prompt.include:
        found = list(objects.get(clause.class_name, ()))[: clause.count]
        reason = _missing(clause, found)
        if reason is None and clause.color is not None:
            reason = _miscolored(clause, colors(found, clause.class_name))
        if reason is None and clause.position is not None:
            reason = _misplaced(clause, found, groups[clause.position[1]], thresholds.position)
        groups.append(found if reason is None else None)
        if reason is not None:
            reasons.append(reason)
    for clause in prompt.exclude:
        count = len(objects.get(clause.class_name, ()))
        if count >= clause.count:
            reasons.append(f"expected {clause.class_name}<{clause.count}, found {count}")
    return Verdict(not reasons, "\n".join(reasons))


def _missing(clause: Clause, found: Sequence[Detection]) -> str | None:
    if len(found) >= clause.count:
        return None
    return f"expected {clause.class_name}>={clause.count}, found {len(found)}"


def _miscolored(clause: Clause, names: Sequence[str]) -> str | None:
    right = list(names).count(str(clause.color))
    if right >= clause.count:
        return None
    seen = ", ".join(f"{list(names).count(color)} {color}" for color in COLORS if color in names)
    return f"expected {clause.color} {clause.class_name}>={clause.count}, found {right} {clause.color}; and {seen}"


def _misplaced(
    clause: Clause, found: Sequence[Detection], targets: Sequence[Detection] | None, threshold: float
) -> str | None:
    assert clause.position is not None
    relation, name = clause.position[0], clause.class_name
    if targets is None:
        return f"no target for {name} to be {relation}"
    for item in found:
        for target in targets:
            true = relations(item.box, target.box, threshold)
            if relation not in true:
                return f"expected {name} {relation} target, found {' and '.join(true)} target"
    return None
