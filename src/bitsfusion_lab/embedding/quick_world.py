"""The quick world's side of the training: latents of twelve channels and the questions about its captions."""

from __future__ import annotations

import random
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from bitsfusion.embedded.quick import QuickWorld
from bitsfusion.embedded.world import BACKGROUND, Object, Prompt, Scene
from bitsfusion_lab.embedding.world import TrainedWorld

_COLORS = tuple(QuickWorld.colors)
_MOST_KINDS = 2


class TrainedQuickWorld(QuickWorld, TrainedWorld):
    """A cell's latent is its drawing on a basis of shapes times colours, which span exactly 4 x 3 dimensions.

    Whitened over the sprites, every direction of shape and colour has the same signal, and an object (not the mostly
    empty image) has RMS 1.
    """

    channels = 12
    structure_sizes = (
        *(len(QuickWorld.shapes) + 1, len(_COLORS) + 1) * _MOST_KINDS,
        max(QuickWorld.counts) + 1,  # how many objects of the first kind
        *(len(QuickWorld.shapes) + 1,) * 4,  # which shape is left, right, above, below of another
    )
    # Counting and relations need the slots to agree on a plan and take longest to learn.
    task_weights: ClassVar = dict(
        single_object=0.4, two_object=0.8, counting=1.2, colors=0.5, position=3.0, color_attr=1.2
    )

    def __init__(self) -> None:
        masks = np.stack([self.mask(shape).ravel() for shape in self.shapes], axis=1)
        triangular: npt.NDArray[np.float64] = np.linalg.qr(masks, mode="r")  # type: ignore[assignment]  # numpy's stub
        tints = (np.asarray(list(self.colors.values()), dtype=np.float64) - BACKGROUND) / 127.5
        sprites = np.stack([np.outer(column, tint).ravel() for column in triangular.T for tint in tints])
        values, vectors = np.linalg.eigh(sprites.T @ sprites / len(sprites))
        codes = (sprites @ (vectors / np.sqrt(values) @ vectors.T)).astype(np.float32)
        names = [(shape, color) for shape in self.shapes for color in self.colors]
        self._codes = {name: torch.from_numpy(code) for name, code in zip(names, codes, strict=True)}

    def code(self, item: Object) -> torch.Tensor:
        """See the class."""
        return self._codes[item.shape, item.color]

    def foil(self, prompt: Prompt, rng: random.Random) -> Prompt:
        """Another caption about the same shapes and colours where one is found."""
        others = self.all_prompts(prompt.tag, "train")
        for _ in range(60):
            other = rng.choice(others)
            if other.include != prompt.include and _content(other) == _content(prompt):
                return other
        return rng.choice(others)

    def random_scene(self, rng: random.Random) -> Scene:
        """Any shapes and colours in any of the four cells."""
        cells = [cell for cell in self.cells if rng.random() < 0.6]
        return tuple(Object(rng.choice(self.shapes), rng.choice(_COLORS), self.sizes[0], cell) for cell in cells)

    def structure(self, prompt: Prompt) -> list[int]:
        """What the caption says: shape and colour of each kind in the order of its words (0 where it doesn't say),
        how many of the first, and which shape is said to be on each side."""
        kinds = self.in_words_order(prompt)
        answers = []
        for kind in kinds:
            answers += [self.shapes.index(kind.shape) + 1, 0 if kind.color is None else _COLORS.index(kind.color) + 1]
        answers += [0, 0] * (_MOST_KINDS - len(kinds))
        return [*answers, kinds[0].count, *self.sides(kinds)]


def _content(prompt: Prompt) -> tuple[list[str], list[str]]:
    return sorted(need.shape for need in prompt.include), sorted(need.color or "" for need in prompt.include)
