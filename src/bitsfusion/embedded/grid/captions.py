"""Captions of the grid world in eight tasks, scenes that fit them, and the strict check of a scene.

The first six tasks are GenEval's and keep its tags; two are added: three objects, and sizes. A prompt carries the
same metadata as a line of GenEval's prompt file (tag, include, prompt), with sizes beside colours. The check is
stricter than GenEval's: a scene passes only if it holds exactly the objects asked for.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bitsfusion.embedded.grid.scene import CELLS, COLORS, GRID_SIZE, SHAPES, SIZES, Object, Scene
from bitsfusion.errors import InputError

TASKS = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
    "three_object",
    "size",
)
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
PREFIXES = ("", "a photo of ", "a drawing of ", "a picture of ", "an image of ", "a painting of ")
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Requirement:
    """`count` objects of one shape, of one colour or size where these are given.

    `position` = (relation, index) asks that the object stands so relative to the object of requirement number
    `index`, as in GenEval's metadata.
    """

    shape: str
    count: int = 1
    color: str | None = None
    size: str | None = None
    position: tuple[str, int] | None = None

    def matches(self, item: Object) -> bool:
        """Whether shape, colour and size of `item` are as asked; number and position are of a whole scene."""
        return item.shape == self.shape and self.color in (None, item.color) and self.size in (None, item.size)


@dataclass(frozen=True)
class Prompt:
    """A caption with what it asks for."""

    tag: str
    include: tuple[Requirement, ...]
    text: str

    def metadata(self) -> dict[str, object]:
        """The prompt as a line of GenEval's metadata file, sizes added."""
        include = []
        for need in self.include:
            entry: dict[str, object] = {"class": need.shape, "count": need.count}
            if need.color:
                entry["color"] = need.color
            if need.size:
                entry["size"] = need.size
            if need.position:
                entry["position"] = list(need.position)
            include.append(entry)
        return {"tag": self.tag, "include": include, "prompt": self.text}


def _one(need: Requirement) -> str:
    """A requirement of one object in words: "an orange ring"."""
    words = " ".join(word for word in (need.size, need.color, need.shape) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _many(need: Requirement) -> str:
    return f"{NUMBERS[need.count]} {need.shape}{'es' if need.shape.endswith('s') else 's'}"


def _listed(include: Sequence[Requirement]) -> str:
    *others, last = map(_one, include)
    return f"{', '.join(others)} and {last}" if others else last


def _asked(tag: str) -> Iterator[tuple[str, tuple[Requirement, ...]]]:
    """Every body of a caption of a task, with what it asks for."""
    includes: Iterator[tuple[Requirement, ...]]
    pairs = list(itertools.permutations(SHAPES, 2))
    if tag == "counting":
        for count, shape in itertools.product(NUMBERS, SHAPES):
            need = Requirement(shape, count)
            yield _many(need), (need,)
        return
    if tag == "position":
        for (subject, other), relation in itertools.product(pairs, RELATIONS):
            needs = Requirement(other), Requirement(subject, position=(relation, 0))
            yield f"{_one(needs[1])} {relation} {_one(needs[0])}", needs
        return
    if tag == "single_object":
        includes = ((Requirement(shape),) for shape in SHAPES)
    elif tag == "two_object":
        includes = ((Requirement(a), Requirement(b)) for a, b in pairs)
    elif tag == "three_object":
        includes = (tuple(map(Requirement, shapes)) for shapes in itertools.permutations(SHAPES, 3))
    elif tag == "colors":
        includes = ((Requirement(shape, color=color),) for color, shape in itertools.product(COLORS, SHAPES))
    elif tag == "color_attr":
        includes = (
            (Requirement(a, color=c), Requirement(b, color=d))
            for a, b in pairs
            for c, d in itertools.permutations(COLORS, 2)
        )
    elif tag == "size":
        singles = ((Requirement(shape, size=size),) for size, shape in itertools.product(SIZES, SHAPES))
        both = (
            (Requirement(a, size=s), Requirement(b, size=t))
            for a, b in pairs
            for s, t in itertools.product(SIZES, repeat=2)
        )
        includes = itertools.chain(singles, both)
    else:
        raise InputError(f"task: got {tag!r}, wanted one of {', '.join(TASKS)}")
    for include in includes:
        yield _listed(include), include


@functools.cache
def all_prompts(tag: str, split: Split) -> tuple[Prompt, ...]:
    """Every prompt of a task in one split, in a fixed shuffled order.

    A caption belongs to one split by its exact words: 70 % train, 10 % validation, 20 % test. Settings are chosen on
    validation prompts and reported on test prompts.

    Raises:
        InputError: there is no such task or split.
    """
    if split not in ("train", "validation", "test"):
        raise InputError(f"split: got {split!r}, wanted train, validation or test")
    prompts = [Prompt(tag, include, prefix + body) for body, include in _asked(tag) for prefix in PREFIXES]
    random.Random(f"grid captions {tag}").shuffle(prompts)
    validation = len(prompts) // 10
    test = validation + len(prompts) // 5
    bounds = {"validation": (0, validation), "test": (validation, test), "train": (test, None)}
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
    return {
        "left of": subject.column < other.column,
        "right of": subject.column > other.column,
        "above": subject.row < other.row,
        "below": subject.row > other.row,
    }[relation]


def sample_scene(prompt: Prompt, rng: random.Random) -> Scene:
    """A random scene that fits `prompt`; what it leaves open is drawn uniformly.

    Related objects stand in one row or one column, with any number of cells between them.
    """
    wanted = [need for need in prompt.include for _ in range(need.count)]
    cells = rng.sample(range(CELLS), len(wanted))
    for index, need in enumerate(wanted):
        if need.position:
            relation, other = need.position
            line = rng.randrange(GRID_SIZE)
            first, second = sorted(rng.sample(range(GRID_SIZE), 2))
            here, there = (first, second) if relation in ("left of", "above") else (second, first)
            along = relation in ("left of", "right of")
            cells[index], cells[other] = (
                line * GRID_SIZE + place if along else place * GRID_SIZE + line for place in (here, there)
            )
    colors = tuple(COLORS)
    return tuple(
        Object(need.shape, need.color or rng.choice(colors), need.size or rng.choice(SIZES), cell)
        for need, cell in zip(wanted, cells, strict=True)
    )


def fits(prompt: Prompt, scene: Scene) -> bool:
    """Whether `scene` holds exactly what `prompt` asks for and nothing else."""
    if len(scene) != sum(need.count for need in prompt.include):
        return False
    matched: list[list[Object]] = []
    for need in prompt.include:
        found = [item for item in scene if need.matches(item)]
        if len(found) != need.count:
            return False
        if need.position:
            relation, other = need.position
            if not relation_holds(relation, found[0], matched[other][0]):
                return False
        matched.append(found)
    return True
