"""Captions of the grid world in eight tasks, scenes that fit them, and the strict check of a scene.

The first six tasks are GenEval's and keep its tags; two are added: three objects, and sizes. A prompt carries the
same metadata as a line of GenEval's prompt file (tag, include, prompt), with sizes beside colours. The check is
stricter than GenEval's: a scene passes only if it holds exactly the objects asked for.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bitsfusion.embedded.grid.scene import CELLS, COLORS, GRID_SIZE, MOST_OBJECTS, SHAPES, SIZES, Object, Scene
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
    """A requirement of several objects in words: "three red crosses"."""
    words = " ".join(word for word in (need.size, need.color, need.shape) if word)
    return f"{NUMBERS[need.count]} {words}{'es' if need.shape.endswith('s') else 's'}"


def _listed(include: Sequence[Requirement]) -> str:
    *others, last = (_one(need) if need.count == 1 else _many(need) for need in include)
    return f"{', '.join(others)} and {last}" if others else last


def _families(tag: str) -> dict[str, list[tuple[Requirement, ...]]]:
    """What a task's captions ask for, in families that come up equally often: an easy one, and harder ones."""
    pairs = list(itertools.permutations(SHAPES, 2))
    triples = list(itertools.permutations(SHAPES, 3))
    if tag == "single_object":
        return {"": [(Requirement(shape),) for shape in SHAPES]}
    if tag == "two_object":
        return {"": [(Requirement(a), Requirement(b)) for a, b in pairs]}
    if tag == "counting":
        counts = [(m, n) for m, n in itertools.product(range(1, MOST_OBJECTS), repeat=2) if 3 <= m + n <= MOST_OBJECTS]
        return {
            "": [(Requirement(shape, count),) for count, shape in itertools.product(NUMBERS, SHAPES)],
            "two kinds": [(Requirement(a, m), Requirement(b, n)) for a, b in pairs for m, n in counts],
        }
    if tag == "colors":
        named = list(itertools.product(COLORS, SHAPES))
        return {
            "": [(Requirement(shape, color=color),) for color, shape in named],
            "several": [(Requirement(shape, count, color),) for count in (2, 3) for color, shape in named],
        }
    if tag == "position":
        return {
            "": [
                (Requirement(other), Requirement(subject, position=(relation, 0)))
                for (subject, other), relation in itertools.product(pairs, RELATIONS)
            ]
        }
    if tag == "color_attr":
        return {
            "": [
                (Requirement(a, color=c), Requirement(b, color=d))
                for a, b in pairs
                for c, d in itertools.permutations(COLORS, 2)
            ]
        }
    if tag == "three_object":
        # Every triple of shapes with each triple of colours would be 40,320 captions: the colours go round.
        wheel = itertools.cycle(itertools.permutations(COLORS, 3))
        return {
            "": [tuple(map(Requirement, shapes)) for shapes in triples],
            "coloured": [
                tuple(Requirement(shape, color=color) for shape, color in zip(shapes, next(wheel), strict=True))
                for shapes in triples
                for _ in range(10)
            ],
        }
    if tag == "size":
        sizes = list(itertools.product(SIZES, repeat=2))
        one = [(Requirement(shape, size=size),) for size, shape in itertools.product(SIZES, SHAPES)]
        both = [(Requirement(a, size=s), Requirement(b, size=t)) for a, b in pairs for s, t in sizes]
        hues = itertools.cycle(itertools.permutations(COLORS, 2))
        return {
            "": [*one, *both],
            "coloured": [
                (Requirement(a, color=c, size=s), Requirement(b, color=d, size=t))
                for a, b in pairs
                for s, t in sizes
                for c, d in itertools.islice(hues, 11)
            ],
        }
    raise InputError(f"task: got {tag!r}, wanted one of {', '.join(TASKS)}")


def _body(include: Sequence[Requirement]) -> str:
    """A caption without its prefix."""
    if include[-1].position:
        other, subject = include
        return f"{_one(subject)} {include[-1].position[0]} {_one(other)}"
    return _listed(include)


@functools.cache
def _splits(tag: str) -> dict[str, tuple[tuple[Prompt, ...], ...]]:
    """The prompts of each split of a task, family by family."""
    parts: dict[str, list[tuple[Prompt, ...]]] = {"train": [], "validation": [], "test": []}
    for family, includes in _families(tag).items():
        prompts = [Prompt(tag, include, prefix + _body(include)) for include in includes for prefix in PREFIXES]
        random.Random(f"grid captions {tag} {family}".strip()).shuffle(prompts)
        validation = len(prompts) // 10
        test = validation + len(prompts) // 5
        parts["validation"].append(tuple(prompts[:validation]))
        parts["test"].append(tuple(prompts[validation:test]))
        parts["train"].append(tuple(prompts[test:]))
    return {split: tuple(families) for split, families in parts.items()}


@functools.cache
def all_prompts(tag: str, split: Split) -> tuple[Prompt, ...]:
    """Every prompt of a task in one split, in a fixed shuffled order; the families of a task take turns.

    A caption belongs to one split by its exact words: 70 % train, 10 % validation, 20 % test. Settings are chosen on
    validation prompts and reported on test prompts.

    Raises:
        InputError: there is no such task or split.
    """
    if split not in ("train", "validation", "test"):
        raise InputError(f"split: got {split!r}, wanted train, validation or test")
    turns = itertools.zip_longest(*_splits(tag)[split])
    return tuple(prompt for turn in turns for prompt in turn if prompt is not None)


def prompt_set(split: Split, per_task: int) -> list[Prompt]:
    """`per_task` prompts of each task, its families taking turns; they come again where there are fewer."""
    chosen = []
    for tag in TASKS:
        families = _splits(tag)[split]
        for index in range(per_task):
            family = families[index % len(families)]
            chosen.append(family[index // len(families) % len(family)])
    return chosen


def sample_prompt(rng: random.Random, split: Split = "train", weights: Sequence[float] | None = None) -> Prompt:
    """A random prompt: first the task (uniform, or by `weights` in the order of `TASKS`), its family, the caption."""
    tag = rng.choices(TASKS, weights)[0]
    return rng.choice(rng.choice(_splits(tag)[split]))


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
