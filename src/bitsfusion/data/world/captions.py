"""Captions of the drawn world in GenEval's six tasks, scenes that fit them, and the check of a scene.

A prompt carries the same metadata as a line of GenEval's prompt file (tag, include, prompt), with one
difference: the check here is strict. A scene passes only if it holds exactly the objects asked for.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bitsfusion.data.world.scene import COLORS, SHAPES, SLOTS, Object, Scene

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
PREFIXES = ("", "a photo of ", "a drawing of ", "a picture of ")
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Requirement:
    """`count` objects of one shape, of one colour if `color` is given.

    `position` = (relation, index) asks that the object stands so relative to the object of
    requirement number `index`, as in GenEval's metadata.
    """

    shape: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Prompt:
    """A caption with what it asks for."""

    tag: str
    include: tuple[Requirement, ...]
    text: str

    def metadata(self) -> dict[str, object]:
        """The prompt as a line of GenEval's metadata file."""
        include = []
        for need in self.include:
            entry: dict[str, object] = {"class": need.shape, "count": need.count}
            if need.color:
                entry["color"] = need.color
            if need.position:
                entry["position"] = list(need.position)
            include.append(entry)
        return {"tag": self.tag, "include": include, "prompt": self.text}


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _bodies(tag: str) -> list[tuple[str, tuple[Requirement, ...]]]:
    pairs = list(itertools.permutations(SHAPES, 2))
    if tag == "single_object":
        return [(f"a {shape}", (Requirement(shape),)) for shape in SHAPES]
    if tag == "two_object":
        return [(f"a {a} and a {b}", (Requirement(a), Requirement(b))) for a, b in pairs]
    if tag == "counting":
        return [
            (f"{word} {_plural(shape)}", (Requirement(shape, count),))
            for count, word in NUMBERS.items()
            for shape in SHAPES
        ]
    if tag == "colors":
        return [(f"a {color} {shape}", (Requirement(shape, color=color),)) for color in COLORS for shape in SHAPES]
    if tag == "position":
        return [
            (f"a {a} {relation} a {b}", (Requirement(b), Requirement(a, position=(relation, 0))))
            for a, b in pairs
            for relation in RELATIONS
        ]
    if tag == "color_attr":
        return [
            (f"a {c} {a} and a {d} {b}", (Requirement(a, color=c), Requirement(b, color=d)))
            for a, b in pairs
            for c, d in itertools.permutations(COLORS, 2)
        ]
    raise ValueError(f"task: got {tag!r}, wanted one of {', '.join(TASKS)}")


@functools.cache
def all_prompts(tag: str, split: Split) -> tuple[Prompt, ...]:
    """Every prompt of a task in one split, in a fixed shuffled order.

    A caption belongs to one split by its exact words: 70 % train, 10 % validation, 20 % test. Settings
    are chosen on validation prompts and reported on test prompts.
    """
    prompts = [Prompt(tag, include, prefix + body) for body, include in _bodies(tag) for prefix in PREFIXES]
    random.Random(f"captions {tag}").shuffle(prompts)
    validation = max(1, len(prompts) // 10)
    test = max(2, len(prompts) // 5)
    bounds = {
        "validation": (0, validation),
        "test": (validation, validation + test),
        "train": (validation + test, None),
    }
    return tuple(prompts[slice(*bounds[split])])


def prompt_set(split: Split, per_task: int) -> list[Prompt]:
    """`per_task` prompts of each task, cycling through the split where it holds fewer."""
    return [
        prompts[index % len(prompts)]
        for prompts in (all_prompts(tag, split) for tag in TASKS)
        for index in range(per_task)
    ]


def sample_prompt(rng: random.Random, split: Split = "train", weights: Sequence[float] | None = None) -> Prompt:
    """A random prompt: first the task (uniform, or by `weights` in the order of `TASKS`), then the caption."""
    tag = rng.choices(TASKS, weights)[0]
    return rng.choice(all_prompts(tag, split))


def relation_holds(relation: str, subject: Object, other: Object) -> bool:
    """Whether `subject` stands in `relation` to `other`; on a diagonal two relations hold."""
    (row, column), (other_row, other_column) = SLOTS[subject.slot], SLOTS[other.slot]
    return {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[relation]


def sample_scene(prompt: Prompt, rng: random.Random) -> Scene:
    """A random scene that fits `prompt`; related objects are drawn in one row or column."""
    wanted = [need for need in prompt.include for _ in range(need.count)]
    slots = rng.sample(range(len(SLOTS)), len(wanted))
    for index, need in enumerate(wanted):
        if need.position:
            relation, other = need.position
            row, column = rng.randrange(2), rng.randrange(2)
            before, after = ((row, 0), (row, 1)) if relation in ("left of", "right of") else ((0, column), (1, column))
            here, there = (before, after) if relation in ("left of", "above") else (after, before)
            slots[index], slots[other] = here[0] * 2 + here[1], there[0] * 2 + there[1]
    colors = list(COLORS)
    return tuple(
        Object(need.shape, need.color or rng.choice(colors), slot) for need, slot in zip(wanted, slots, strict=True)
    )


def fits(prompt: Prompt, scene: Scene) -> bool:
    """Whether `scene` holds exactly what `prompt` asks for and nothing else."""
    if len(scene) != sum(need.count for need in prompt.include):
        return False
    matched: list[list[Object]] = []
    for need in prompt.include:
        found = [item for item in scene if item.shape == need.shape and need.color in (None, item.color)]
        if len(found) != need.count:
            return False
        if need.position:
            relation, other = need.position
            if not relation_holds(relation, found[0], matched[other][0]):
                return False
        matched.append(found)
    return True
