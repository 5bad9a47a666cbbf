"""What the training needs of a drawn world, so that one code makes the models of each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch


class Captioned(Protocol):
    """A prompt, as far as the training is concerned."""

    @property
    def tag(self) -> str:
        """Its task."""
        ...

    @property
    def text(self) -> str:
        """Its words."""
        ...


PromptT = TypeVar("PromptT", bound=Captioned)
SceneT = TypeVar("SceneT")


class World(Protocol[PromptT, SceneT]):
    """A world of captions and scenes, with the linear picture of it that the VAE is asked to learn."""

    channels: int
    """Of the latents; these have one element for each cell."""
    grid_size: int
    image_size: int
    structure_sizes: tuple[int, ...]
    """How many answers each question about a caption has; see `structure`."""

    def words(self) -> list[str]:
        """Every word of the training captions, sorted."""
        ...

    def sample_prompt(self, rng: random.Random) -> PromptT:
        """A training prompt; hard tasks come up more often."""
        ...

    def foil(self, prompt: PromptT, rng: random.Random) -> PromptT:
        """Another training prompt, about the same things where there is one: what contrast must tell apart."""
        ...

    def sample_scene(self, prompt: PromptT, rng: random.Random) -> SceneT:
        """A scene that fits `prompt`."""
        ...

    def random_scene(self, rng: random.Random) -> SceneT:
        """Any scene, captioned or not."""
        ...

    def fits(self, prompt: PromptT, scene: SceneT) -> bool:
        """Whether the scene is what the prompt asks for."""
        ...

    def draw(self, scene: SceneT) -> npt.NDArray[np.uint8]:
        """[h, w, 3] picture of a scene."""
        ...

    def read(self, image: npt.NDArray[np.uint8]) -> SceneT:
        """The scene that a picture shows."""
        ...

    def encode(self, scenes: Sequence[SceneT]) -> torch.Tensor:
        """[n, channels, grid, grid] float32 latents of scenes."""
        ...

    def structure(self, prompt: PromptT) -> list[int]:
        """The right answer to each question about what `prompt` says, in the order of `structure_sizes`."""
        ...
