"""A drawn world: captions in tasks, scenes that fit them, their pictures, and the strict check of a picture.

The first six tasks are GenEval's and keep its tags. A prompt carries the same metadata as a line of GenEval's prompt
file (tag, include, prompt), with sizes beside colours. The check is stricter than GenEval's: a scene passes only if it
holds exactly the objects asked for.
"""

from __future__ import annotations

import functools
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bitsfusion.errors import InputError

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's."""
RELATIONS = ("left of", "right of", "above", "below")
BACKGROUND = (26, 28, 38)
IMAGE_SIZE = 64
CELL_SIZE = 16
GRID_SIZE = IMAGE_SIZE // CELL_SIZE
CELLS = GRID_SIZE**2
UNREADABLE = "unreadable"
"""The shape or colour of a blob that has none; such an object makes every strict check fail."""

Image: TypeAlias = npt.NDArray[np.uint8]
"""[64, 64, 3]."""
Mask: TypeAlias = npt.NDArray[np.bool_]
Split = Literal["train", "validation", "test"]
Includes: TypeAlias = "list[tuple[Requirement, ...]]"

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
_SUBSAMPLES = 8


@dataclass(frozen=True)
class Object:
    """One drawn shape: the names of its shape, colour and size, and the cell it stands in, counted row by row."""

    shape: str
    color: str
    size: str
    cell: int

    @property
    def row(self) -> int:
        """The row of its cell, 0 at the top."""
        return self.cell // GRID_SIZE

    @property
    def column(self) -> int:
        """The column of its cell, 0 at the left."""
        return self.cell % GRID_SIZE


Scene: TypeAlias = tuple[Object, ...]


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

    def words(self) -> str:
        """In words: "an orange ring", "three red crosses"."""
        words = " ".join(word for word in (self.size, self.color, self.shape) if word)
        if self.count > 1:
            return f"{_NUMBERS[self.count]} {words}{'es' if self.shape.endswith('s') else 's'}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


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
            entry |= {name: value for name in ("color", "size") if (value := getattr(need, name))}
            if need.position:
                entry["position"] = list(need.position)
            include.append(entry)
        return {"tag": self.tag, "include": include, "prompt": self.text}


class World(ABC):
    """Shapes of some colours and sizes on a dark ground, in cells of a 4x4 grid of 16x16 pixels.

    Drawing is exact and procedural, so training data never ends and a picture is read back without a learned detector.
    """

    name: str
    """Its name in fingerprints of its data."""
    seed: str
    """Shuffles its captions."""
    tasks: tuple[str, ...] = TASKS
    shapes: tuple[str, ...]
    sizes: tuple[str, ...] = ("large",)
    colors: ClassVar[Mapping[str, tuple[int, int, int]]]
    cells: Sequence[int]
    """The cells that may hold an object."""
    counts: Sequence[int]
    """The numbers of objects that the task counting asks for."""
    prefixes: tuple[str, ...]
    scales: ClassVar[Mapping[str, float]] = {"large": 1.0}

    def includes(self, tag: str) -> dict[str, Includes]:
        """What a task's captions ask for, in families that come up equally often.

        Raises:
            InputError: there is no such task.
        """
        pairs = list(itertools.permutations(self.shapes, 2))
        named = list(itertools.product(self.colors, self.shapes))
        if tag == "single_object":
            found: Includes = [(Requirement(shape),) for shape in self.shapes]
        elif tag == "two_object":
            found = [(Requirement(a), Requirement(b)) for a, b in pairs]
        elif tag == "counting":
            found = [(Requirement(shape, count),) for count, shape in itertools.product(self.counts, self.shapes)]
        elif tag == "colors":
            found = [(Requirement(shape, color=color),) for color, shape in named]
        elif tag == "position":
            found = [
                (Requirement(other), Requirement(subject, position=(relation, 0)))
                for (subject, other), relation in itertools.product(pairs, RELATIONS)
            ]
        elif tag == "color_attr":
            found = [
                (Requirement(a, color=c), Requirement(b, color=d))
                for a, b in pairs
                for c, d in itertools.permutations(self.colors, 2)
            ]
        else:
            raise InputError(f"task: got {tag!r}, wanted one of {', '.join(self.tasks)}")
        return {"": found}

    @functools.cache  # noqa: B019 - worlds are few and live for ever
    def families(self, tag: str, split: Split) -> tuple[tuple[Prompt, ...], ...]:
        """The prompts of a task in one split, family by family, in a fixed shuffled order.

        A caption belongs to one split by its exact words: 70 % train, 10 % validation, 20 % test. Settings are chosen
        on validation prompts and reported on test prompts.

        Raises:
            InputError: there is no such task or split.
        """
        families = []
        for family, includes in self.includes(tag).items():
            prompts = [Prompt(tag, asked, prefix + _caption(asked)) for asked in includes for prefix in self.prefixes]
            random.Random(f"{self.seed} {tag} {family}".strip()).shuffle(prompts)
            validation = max(1, len(prompts) // 10)
            test = validation + max(2, len(prompts) // 5)
            bounds = {"validation": (0, validation), "test": (validation, test), "train": (test, None)}
            if split not in bounds:
                raise InputError(f"split: got {split!r}, wanted train, validation or test")
            families.append(tuple(prompts[slice(*bounds[split])]))
        return tuple(families)

    def all_prompts(self, tag: str, split: Split) -> tuple[Prompt, ...]:
        """Every prompt of a task in one split, its families taking turns; errors as `families`."""
        turns = itertools.zip_longest(*self.families(tag, split))
        return tuple(prompt for turn in turns for prompt in turn if prompt is not None)

    def prompt_set(self, split: Split, per_task: int) -> list[Prompt]:
        """`per_task` prompts of each task, its families taking turns; they come again where there are fewer."""
        chosen = []
        for tag in self.tasks:
            families = self.families(tag, split)
            for index in range(per_task):
                family = families[index % len(families)]
                chosen.append(family[index // len(families) % len(family)])
        return chosen

    def sample_prompt(
        self, rng: random.Random, split: Split = "train", weights: Sequence[float] | None = None
    ) -> Prompt:
        """A random prompt: its task (uniform, or by `weights` in the order of `tasks`), its family, its caption."""
        return rng.choice(rng.choice(self.families(rng.choices(self.tasks, weights)[0], split)))

    def sample_scene(self, prompt: Prompt, rng: random.Random) -> Scene:
        """A random scene that fits `prompt`; what it leaves open is drawn uniformly."""
        wanted = [need for need in prompt.include for _ in range(need.count)]
        cells = rng.sample(self.cells, len(wanted))
        for index, need in enumerate(wanted):
            if need.position:
                relation, other = need.position
                before, after = self.in_line(relation in ("left of", "right of"), rng)
                here, there = (before, after) if relation in ("left of", "above") else (after, before)
                cells[index], cells[other] = here, there
        colors = tuple(self.colors)
        return tuple(
            Object(need.shape, need.color or rng.choice(colors), need.size or self.sample_size(rng), cell)
            for need, cell in zip(wanted, cells, strict=True)
        )

    def sample_size(self, rng: random.Random) -> str:
        """The size of an object that is asked for without one."""
        return self.sizes[0] if len(self.sizes) == 1 else rng.choice(self.sizes)

    @abstractmethod
    def in_line(self, row: bool, rng: random.Random) -> tuple[int, int]:
        """Two random cells of one row, or of one column, the first nearer to the left or to the top."""

    @abstractmethod
    def inside(self, shape: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Mask:
        """Whether each point belongs to the large shape; x runs to the right, y down, in pixels from the cell's centre.

        Raises:
            InputError: there is no such shape.
        """

    @abstractmethod
    def read(self, image: Image) -> Scene:
        """The objects seen in `image` ([64, 64, 3] uint8), in order of cell.

        A blob that is no shape is returned with shape `UNREADABLE`, one whose colour is far from every name with
        colour `UNREADABLE`, so that a strict check never passes by overlooking something.

        Raises:
            InputError: the image has another size.
        """

    @functools.cache  # noqa: B019
    def mask(self, shape: str, size: str = "large") -> npt.NDArray[np.float32]:
        """Coverage of a shape over one cell: [16, 16] float32 in [0, 1], antialiased 8 times a side.

        Raises:
            InputError: there is no such shape or size.
        """
        if size not in self.sizes:
            raise InputError(f"size: got {size!r}, wanted one of {', '.join(self.sizes)}")
        axis = ((np.arange(CELL_SIZE * _SUBSAMPLES) + 0.5) / _SUBSAMPLES - CELL_SIZE / 2) / self.scales[size]
        blocks = self.inside(shape, axis[None, :], axis[:, None])
        blocks = blocks.reshape(CELL_SIZE, _SUBSAMPLES, CELL_SIZE, _SUBSAMPLES)
        mask: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
        return mask

    def draw(self, scene: Scene) -> Image:
        """The picture of `scene`: [64, 64, 3] uint8.

        Raises:
            InputError: a name or cell that the world does not have, or two objects in one cell.
        """
        if len({item.cell for item in scene}) < len(scene):
            raise InputError(f"scene: got cells {[item.cell for item in scene]}, wanted one object a cell")
        background = np.asarray(BACKGROUND, dtype=np.float32)
        image = np.tile(background, (IMAGE_SIZE, IMAGE_SIZE, 1))
        for item in scene:
            if item.color not in self.colors or item.cell not in self.cells:
                colors = ", ".join(self.colors)
                raise InputError(f"object: got {item}, wanted a colour of {colors} and a cell of {list(self.cells)}")
            top, left = item.row * CELL_SIZE, item.column * CELL_SIZE
            mask = self.mask(item.shape, item.size)[..., None]
            color = np.asarray(self.colors[item.color], dtype=np.float32)
            image[top : top + CELL_SIZE, left : left + CELL_SIZE] = background + mask * (color - background)
        return np.rint(image).astype(np.uint8)

    def shows(self, image: Image, prompt: Prompt) -> bool:
        """Whether a picture shows exactly what `prompt` asks for, and nothing else."""
        return fits(prompt, self.read(image))


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


def relation_holds(relation: str, subject: Object, other: Object) -> bool:
    """Whether `subject` stands in `relation` to `other`; on a diagonal two relations hold."""
    return {
        "left of": subject.column < other.column,
        "right of": subject.column > other.column,
        "above": subject.row < other.row,
        "below": subject.row > other.row,
    }[relation]


def check_size(image: Image) -> None:
    """Raises InputError for a picture of another size than the world's."""
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise InputError(f"image: got {list(image.shape)}, wanted [{IMAGE_SIZE}, {IMAGE_SIZE}, 3]")


def _caption(include: Sequence[Requirement]) -> str:
    """A caption without its prefix."""
    if include[-1].position:
        other, subject = include
        return f"{subject.words()} {include[-1].position[0]} {other.words()}"
    *others, last = (need.words() for need in include)
    return f"{', '.join(others)} and {last}" if others else last
