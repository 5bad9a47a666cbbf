"""The grid world's side of the training: latents of eight channels and the questions about its captions."""

from __future__ import annotations

import functools
import random
from typing import ClassVar

import numpy as np
import torch

from bitsfusion.embedded.grid import GRID, MOST_OBJECTS, GridWorld
from bitsfusion.embedded.world import Object, Prompt, Scene
from bitsfusion_lab.embedding.world import TrainedWorld

_COLORS = tuple(GridWorld.colors)
_MOST_KINDS = 3  # requirements of one caption


class TrainedGridWorld(GridWorld, TrainedWorld):
    """A cell's latent: 1 channel says that something is there, 1 its size, 3 its shape (the six are the ends of three
    axes, so no two are nearer than the others' neighbours), 3 its colour (RGB, centred and scaled).

    Each part has RMS 1 over the objects. With so few numbers a shape or colour is decided in the middle of the noise
    schedule, where the loss counts, and not at its noisy end.
    """

    channels = 8
    structure_sizes = (
        *(len(GridWorld.shapes) + 1, len(_COLORS) + 1, len(GridWorld.sizes) + 1, MOST_OBJECTS + 1) * _MOST_KINDS,
        *(len(GridWorld.shapes) + 1,) * 4,  # which shape is left, right, above, below of another
    )
    # Counting, relations and three objects need the cells to agree on a plan and take longest to learn.
    task_weights: ClassVar = dict(
        single_object=0.6,
        two_object=0.8,
        counting=2.5,
        colors=0.9,
        position=3.0,
        color_attr=1.0,
        three_object=2.0,
        size=1.6,
    )

    def __init__(self) -> None:
        rgb = np.asarray(list(self.colors.values()), dtype=np.float64)
        tints = rgb - rgb.mean(axis=0)
        tints /= np.sqrt(np.square(tints).mean())
        axes = np.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
        self._codes = {
            (shape, color, size): torch.tensor([1.0, sign, *axes[s], *tints[c]], dtype=torch.float32)
            for s, shape in enumerate(self.shapes)
            for c, color in enumerate(self.colors)
            for size, sign in zip(self.sizes, (-1.0, 1.0), strict=True)
        }

    def code(self, item: Object) -> torch.Tensor:
        """See the class."""
        return self._codes[item.shape, item.color, item.size]

    def foil(self, prompt: Prompt, rng: random.Random) -> Prompt:
        """Another caption about the same shapes, colours and sizes where there is one."""
        alike = [other for other in _alike()[_content(prompt)] if other.include != prompt.include]
        return rng.choice(alike or self.all_prompts(prompt.tag, "train"))

    def random_scene(self, rng: random.Random) -> Scene:
        """Any shapes, colours and sizes in any cells, from none to eight."""
        cells = rng.sample(self.cells, rng.randrange(9))
        return tuple(
            Object(rng.choice(self.shapes), rng.choice(_COLORS), rng.choice(self.sizes), cell) for cell in cells
        )

    def structure(self, prompt: Prompt) -> list[int]:
        """What the caption says: shape, colour, size and number of each kind in the order of its words (0 where it
        doesn't say), and which shape is said to be on each side."""
        kinds = self.in_words_order(prompt)
        answers = []
        for kind in kinds:
            color = 0 if kind.color is None else _COLORS.index(kind.color) + 1
            size = 0 if kind.size is None else self.sizes.index(kind.size) + 1
            answers += [self.shapes.index(kind.shape) + 1, color, size, kind.count]
        answers += [0, 0, 0, 0] * (_MOST_KINDS - len(kinds))
        return [*answers, *self.sides(kinds)]


def _content(prompt: Prompt) -> tuple[object, ...]:
    return (
        prompt.tag,
        *(tuple(sorted(str(getattr(need, name)) for need in prompt.include)) for name in ("shape", "color", "size")),
    )


@functools.cache
def _alike() -> dict[tuple[object, ...], list[Prompt]]:
    """Training prompts by the shapes, colours and sizes that they name."""
    groups: dict[tuple[object, ...], list[Prompt]] = {}
    for tag in GRID.tasks:
        for prompt in GRID.all_prompts(tag, "train"):
            groups.setdefault(_content(prompt), []).append(prompt)
    return groups
