"""A drawn world as training data: a pool of captioned scenes, encoded once, then sampled."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bitsfusion.data.batches import Batch, encode_images
from bitsfusion.diffusion.conditioning import Conditioner
from bitsfusion.embedded.quick import QUICK
from bitsfusion.embedded.world import Split, World
from bitsfusion.io.hashes import sha256_json


class DrawnData:
    """Scenes of a drawn world with captions of one split; see `TrainingData`.

    Args:
        vae: the pipeline's; each distinct scene goes through it once, here.
        conditioner: of the pipeline's prompts.
        seed: of the pool and of the order.
        pool: how many captioned scenes there are.
        split: whose captions are used; metrics report on another one.
        task_weights: how often each of the world's tasks comes up; equally often when None.
    """

    def __init__(
        self,
        vae: Any,
        conditioner: Conditioner,
        *,
        seed: int = 0,
        pool: int = 4096,
        split: Split = "train",
        task_weights: Sequence[float] | None = None,
        world: World = QUICK,
    ) -> None:
        rng = random.Random(f"world {seed} {split}")
        prompts = [world.sample_prompt(rng, split, task_weights) for _ in range(pool)]
        scenes = [world.sample_scene(prompt, rng) for prompt in prompts]
        self._captions = [prompt.text for prompt in prompts]
        scene_rows = {scene: row for row, scene in enumerate(dict.fromkeys(scenes))}
        caption_rows = {text: row for row, text in enumerate(dict.fromkeys(self._captions))}
        images = torch.from_numpy(np.stack([world.draw(scene) for scene in scene_rows]))
        pixels = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        self._latents = encode_images(vae, pixels)
        self._scene_row = torch.tensor([scene_rows[scene] for scene in scenes])
        self._prompts = conditioner.rows(list(caption_rows))
        self._caption_row = torch.tensor([caption_rows[text] for text in self._captions])
        self._seed = seed
        settings = {"world": 1 if world is QUICK else world.name, "seed": seed, "pool": pool, "split": split}
        self._fingerprint = sha256_json({**settings, "weights": list(task_weights or ())})

    @property
    def fingerprint(self) -> str:
        """A hash of the settings that the pool is drawn by."""
        return self._fingerprint

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        """`size` scenes drawn from the pool with replacement; all processes' side by side are one process's."""
        rng = np.random.default_rng([self._seed, 0, step])
        drawn = rng.integers(len(self._captions), size=world_size * size)
        chosen = torch.from_numpy(drawn[rank * size : (rank + 1) * size])
        return Batch(
            self._latents[self._scene_row[chosen]],
            {name: rows[self._caption_row[chosen]] for name, rows in self._prompts.items()},
            tuple(self._captions[index] for index in chosen.tolist()),
        )
