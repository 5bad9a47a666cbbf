"""The grid world's side of the training: latents of eight channels and the questions about its captions."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from bitsfusion.embedded import grid
from bitsfusion.embedded.grid import COLORS, RELATIONS, SHAPES, SIZES, TASKS, Object, Prompt, Scene
from bitsfusion_lab.embedding.relations import OPPOSITE

# Counting, relations and three objects need the cells to agree on a plan and take longest to learn.
TASK_WEIGHTS = dict(
    single_object=0.6,
    two_object=0.8,
    counting=2.5,
    colors=0.9,
    position=3.0,
    color_attr=1.0,
    three_object=2.0,
    size=1.6,
)
_COLOR_NAMES = tuple(COLORS)
_MOST_KINDS = 3  # requirements of one caption


class GridWorld:
    """The grid world as `bitsfusion_lab.embedding.world.World`.

    A cell's latent: 1 channel says that something is there, 1 its size, 3 its shape (the six are the ends of three
    axes, so no two are nearer than the others' neighbours), 3 its colour (RGB, centred and scaled). Each
    part has RMS 1 over the objects, and an empty cell is zero. With so few numbers a shape or colour is decided
    in the middle of the noise schedule, where the loss counts, and not at its noisy end.
    """

    channels = 8
    grid_size = grid.GRID_SIZE
    image_size = grid.IMAGE_SIZE
    structure_sizes = (
        *(len(SHAPES) + 1, len(_COLOR_NAMES) + 1, len(SIZES) + 1, grid.MOST_OBJECTS + 1) * _MOST_KINDS,
        *(len(SHAPES) + 1,) * 4,  # which shape is left, right, above, below of another
    )

    def __init__(self) -> None:
        rgb = np.asarray(list(COLORS.values()), dtype=np.float64)
        tints = rgb - rgb.mean(axis=0)
        tints /= np.sqrt(np.square(tints).mean())
        axes = np.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
        self._codes = {
            (shape, color, size): torch.tensor([1.0, sign, *axes[s], *tints[c]], dtype=torch.float32)
            for s, shape in enumerate(SHAPES)
            for c, color in enumerate(COLORS)
            for size, sign in zip(SIZES, (-1.0, 1.0), strict=True)
        }
        self._weights = [TASK_WEIGHTS[tag] for tag in TASKS]

    def words(self) -> list[str]:
        """Every word of the training captions, sorted; a comma is a word."""
        texts = {prompt.text for tag in TASKS for prompt in grid.all_prompts(tag, "train")}
        return sorted({word for text in texts for word in text.replace(",", " , ").split()})

    def sample_prompt(self, rng: random.Random) -> Prompt:
        """A training prompt; hard tasks come up more often."""
        return grid.sample_prompt(rng, weights=self._weights)

    def foil(self, prompt: Prompt, rng: random.Random) -> Prompt:
        """Another caption about the same shapes, colours and sizes where there is one."""
        alike = [other for other in _alike()[_content(prompt)] if other.include != prompt.include]
        return rng.choice(alike or grid.all_prompts(prompt.tag, "train"))

    def sample_scene(self, prompt: Prompt, rng: random.Random) -> Scene:
        """A scene that fits `prompt`."""
        return grid.sample_scene(prompt, rng)

    def random_scene(self, rng: random.Random) -> Scene:
        """Any shapes, colours and sizes in any cells, from none to eight."""
        cells = rng.sample(range(grid.CELLS), rng.randrange(9))
        return tuple(Object(rng.choice(SHAPES), rng.choice(_COLOR_NAMES), rng.choice(SIZES), cell) for cell in cells)

    def fits(self, prompt: Prompt, scene: Scene) -> bool:
        """Whether the scene holds exactly what the prompt asks for."""
        return grid.fits(prompt, scene)

    def draw(self, scene: Scene) -> npt.NDArray[np.uint8]:
        """[64, 64, 3] picture of a scene."""
        return grid.draw(scene)

    def read(self, image: npt.NDArray[np.uint8]) -> Scene:
        """The scene that a picture shows."""
        return grid.read(image)

    def encode(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """[n, 8, 4, 4] float32 latents of scenes."""
        latents = torch.zeros(len(scenes), self.channels, self.grid_size, self.grid_size)
        for index, scene in enumerate(scenes):
            for item in scene:
                latents[index, :, item.row, item.column] = self._codes[item.shape, item.color, item.size]
        return latents

    def structure(self, prompt: Prompt) -> list[int]:
        """What the caption says: shape, colour, size and number of each kind in the order of its words (0 where it
        doesn't say), and which shape is said to be on each side."""
        kinds = list(prompt.include)
        if prompt.tag == "position":
            kinds.reverse()
        answers = []
        for kind in kinds:
            color = 0 if kind.color is None else _COLOR_NAMES.index(kind.color) + 1
            size = 0 if kind.size is None else SIZES.index(kind.size) + 1
            answers += [SHAPES.index(kind.shape) + 1, color, size, kind.count]
        answers += [0, 0, 0, 0] * (_MOST_KINDS - len(kinds))
        sides = dict.fromkeys(RELATIONS, 0)
        if kinds[0].position:
            relation = kinds[0].position[0]
            sides[relation] = SHAPES.index(kinds[0].shape) + 1
            sides[OPPOSITE[relation]] = SHAPES.index(kinds[1].shape) + 1
        return [*answers, *sides.values()]


def _content(prompt: Prompt) -> tuple[object, ...]:
    return (
        prompt.tag,
        *(tuple(sorted(str(getattr(need, name)) for need in prompt.include)) for name in ("shape", "color", "size")),
    )


@functools.cache
def _alike() -> dict[tuple[object, ...], list[Prompt]]:
    """Training prompts by the shapes, colours and sizes that they name."""
    groups: dict[tuple[object, ...], list[Prompt]] = {}
    for tag in TASKS:
        for prompt in grid.all_prompts(tag, "train"):
            groups.setdefault(_content(prompt), []).append(prompt)
    return groups
