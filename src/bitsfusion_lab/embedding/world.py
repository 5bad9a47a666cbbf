"""What the training needs of a drawn world beside the world itself, so that one code makes the models of each."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from bitsfusion.embedded.world import GRID_SIZE, RELATIONS, Object, Prompt, Requirement, Scene, World

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class TrainedWorld(World):
    """A world with the linear picture of it that the VAE is asked to learn, and with questions about its captions."""

    channels: int
    """The latents' channels; latents have one element for each cell."""
    structure_sizes: tuple[int, ...]
    """How many answers each question about a caption has; see `structure`."""
    task_weights: ClassVar[Mapping[str, float]]
    """Hard tasks come up more often."""

    def words(self) -> list[str]:
        """Every word of the training captions, sorted; a comma is a word."""
        texts = {prompt.text for tag in self.tasks for prompt in self.all_prompts(tag, "train")}
        return sorted({word for text in texts for word in text.replace(",", " , ").split()})

    def training_prompt(self, rng: random.Random) -> Prompt:
        """A random training prompt by `task_weights`."""
        return self.sample_prompt(rng, weights=[self.task_weights[tag] for tag in self.tasks])

    @abstractmethod
    def foil(self, prompt: Prompt, rng: random.Random) -> Prompt:
        """Another training prompt, about the same things where there is one: what contrast must tell apart."""

    @abstractmethod
    def random_scene(self, rng: random.Random) -> Scene:
        """Any scene, captioned or not."""

    @abstractmethod
    def code(self, item: Object) -> torch.Tensor:
        """[channels] float32, the latent of one object's cell."""

    @abstractmethod
    def structure(self, prompt: Prompt) -> list[int]:
        """The right answer to each question about what `prompt` says, in the order of `structure_sizes`."""

    def encode(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """[n, channels, 4, 4] float32 latents of scenes; an empty cell is zero."""
        latents = torch.zeros(len(scenes), self.channels, GRID_SIZE, GRID_SIZE)
        for index, scene in enumerate(scenes):
            for item in scene:
                latents[index, :, item.row, item.column] = self.code(item)
        return latents

    def in_words_order(self, prompt: Prompt) -> list[Requirement]:
        """What the caption asks for, in the order of its words."""
        return [*reversed(prompt.include)] if prompt.tag == "position" else [*prompt.include]

    def sides(self, kinds: Sequence[Requirement]) -> list[int]:
        """Which shape is said to be left, right, above, below of another: its number from 1, or 0."""
        answers = dict.fromkeys(RELATIONS, 0)
        if kinds[0].position:
            relation = kinds[0].position[0]
            answers[relation] = self.shapes.index(kinds[0].shape) + 1
            answers[_OPPOSITE[relation]] = self.shapes.index(kinds[1].shape) + 1
        return list(answers.values())
