"""The quick world's side of the training: latents of twelve channels and the questions about its captions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from bitsfusion.data.world.captions import (
    NUMBERS,
    RELATIONS,
    TASKS,
    Prompt,
    all_prompts,
    fits,
    sample_prompt,
    sample_scene,
)
from bitsfusion.data.world.reader import read
from bitsfusion.data.world.scene import (
    BACKGROUND,
    COLORS,
    GRID_SIZE,
    IMAGE_SIZE,
    SHAPES,
    SLOTS,
    Object,
    Scene,
    draw,
    shape_mask,
)
from bitsfusion_lab.embedding.relations import OPPOSITE

# Counting and relations need the slots to agree on a plan and take longest to learn.
TASK_WEIGHTS = dict(single_object=0.4, two_object=0.8, counting=1.2, colors=0.5, position=3.0, color_attr=1.2)
_COLOR_NAMES = tuple(COLORS)
_MOST_KINDS = 2


class QuickWorld:
    """The quick world as `bitsfusion_lab.embedding.world.World`.

    A cell's latent is its drawing on a basis of shapes times colours, which span exactly 4 x 3 dimensions. Whitened
    over the sprites, every direction of shape and colour has the same signal, and an object (not the mostly empty
    image) has RMS 1.
    """

    channels = 12
    grid_size = GRID_SIZE
    image_size = IMAGE_SIZE
    structure_sizes = (
        *(len(SHAPES) + 1, len(_COLOR_NAMES) + 1) * _MOST_KINDS,
        max(NUMBERS) + 1,  # how many objects of the first kind
        *(len(SHAPES) + 1,) * 4,  # which shape is left, right, above, below of another
    )

    def __init__(self) -> None:
        masks = np.stack([shape_mask(shape).ravel() for shape in SHAPES], axis=1)
        triangular: npt.NDArray[np.float64] = np.linalg.qr(masks, mode="r")  # type: ignore[assignment]  # numpy's stub
        tints = (np.asarray(list(COLORS.values()), dtype=np.float64) - BACKGROUND) / 127.5
        sprites = np.stack([np.outer(triangular[:, s], tint).ravel() for s in range(len(SHAPES)) for tint in tints])
        values, vectors = np.linalg.eigh(sprites.T @ sprites / len(sprites))
        codes = (sprites @ (vectors / np.sqrt(values) @ vectors.T)).astype(np.float32)
        names = [(shape, color) for shape in SHAPES for color in COLORS]
        self._codes = {name: torch.from_numpy(code) for name, code in zip(names, codes, strict=True)}
        self._weights = [TASK_WEIGHTS[tag] for tag in TASKS]

    def words(self) -> list[str]:
        """Every word of the training captions, sorted."""
        return sorted({word for tag in TASKS for prompt in all_prompts(tag, "train") for word in prompt.text.split()})

    def sample_prompt(self, rng: random.Random) -> Prompt:
        """A training prompt; hard tasks come up more often."""
        return sample_prompt(rng, weights=self._weights)

    def foil(self, prompt: Prompt, rng: random.Random) -> Prompt:
        """Another caption about the same shapes and colours where one is found."""
        others = all_prompts(prompt.tag, "train")
        for _ in range(60):
            other = rng.choice(others)
            if other.include != prompt.include and _content(other) == _content(prompt):
                return other
        return rng.choice(others)

    def sample_scene(self, prompt: Prompt, rng: random.Random) -> Scene:
        """A scene that fits `prompt`."""
        return sample_scene(prompt, rng)

    def random_scene(self, rng: random.Random) -> Scene:
        """Any shapes and colours in any of the four slots."""
        slots = [slot for slot in range(len(SLOTS)) if rng.random() < 0.6]
        return tuple(Object(rng.choice(SHAPES), rng.choice(_COLOR_NAMES), slot) for slot in slots)

    def fits(self, prompt: Prompt, scene: Scene) -> bool:
        """Whether the scene holds exactly what the prompt asks for."""
        return fits(prompt, scene)

    def draw(self, scene: Scene) -> npt.NDArray[np.uint8]:
        """[64, 64, 3] picture of a scene."""
        return draw(scene)

    def read(self, image: npt.NDArray[np.uint8]) -> Scene:
        """The scene that a picture shows."""
        return read(image)

    def encode(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """[n, 12, 4, 4] float32 latents of scenes."""
        latents = torch.zeros(len(scenes), self.channels, self.grid_size, self.grid_size)
        for index, scene in enumerate(scenes):
            for item in scene:
                row, column = SLOTS[item.slot]
                latents[index, :, row, column] = self._codes[item.shape, item.color]
        return latents

    def structure(self, prompt: Prompt) -> list[int]:
        """What the caption says: shape and colour of each kind in the order of its words (0 where it doesn't say),
        how many of the first, and which shape is said to be on each side."""
        kinds = list(prompt.include)
        if prompt.tag == "position":
            kinds.reverse()
        answers = []
        for kind in kinds:
            answers += [SHAPES.index(kind.shape) + 1, 0 if kind.color is None else _COLOR_NAMES.index(kind.color) + 1]
        answers += [0, 0] * (_MOST_KINDS - len(kinds))
        sides = dict.fromkeys(RELATIONS, 0)
        if kinds[0].position:
            relation = kinds[0].position[0]
            sides[relation] = SHAPES.index(kinds[0].shape) + 1
            sides[OPPOSITE[relation]] = SHAPES.index(kinds[1].shape) + 1
        return [*answers, kinds[0].count, *sides.values()]


def _content(prompt: Prompt) -> tuple[list[str], list[str]]:
    return sorted(need.shape for need in prompt.include), sorted(need.color or "" for need in prompt.include)
