"""Images drawn during training, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from bitsfusion.diffusion.denoise import with_denoiser
from bitsfusion.diffusion.samplers import default_sampler
from bitsfusion.errors import InputError
from bitsfusion.pipelines.generation import generate_images, write_png
from bitsfusion.training.config import TrainingConfig


class Validation:
    """Draws config.validation_prompts with the student: image i from seed config.seed + i, guidance 7.5, PNDM or
    a flow's own scheduler.

    Raises:
        InputError: there are prompts and no VAE to draw with.
    """

    def __init__(self, student: nn.Module, pipeline: Any, config: TrainingConfig) -> None:
        self._config = config
        self._pipeline: DiffusionPipeline | None = None
        if not config.validation_prompts:
            return
        if getattr(pipeline, "vae", None) is None:
            raise InputError("validation_prompts: got prompts and no VAE, wanted the pipeline's VAE")
        self._pipeline = with_denoiser(pipeline, student)

    @property
    def models(self) -> list[nn.Module]:
        """What has to be where the student is, beside the text encoder; none without prompts."""
        return [self._pipeline.vae] if self._pipeline else []

    def due(self, step: int) -> bool:
        """Whether images are to be drawn after `step`."""
        every = self._config.validation_steps or self._config.max_train_steps
        return self._pipeline is not None and (step % every == 0 or step == self._config.max_train_steps)

    def draw(self, folder: Path, write: bool = True) -> list[Path]:
        """Writes 000.png, 001.png and so on, one a prompt, to `folder`; draws only where not `write`."""
        assert self._pipeline
        prompts = self._config.validation_prompts
        images = generate_images(
            self._pipeline,
            prompts,
            range(self._config.seed, self._config.seed + len(prompts)),
            steps=self._config.validation_inference_steps,
            sampler=default_sampler(self._pipeline.scheduler),
            batch_size=4,
        )
        if not write:
            return []
        paths = [folder / f"{number:03}.png" for number in range(len(prompts))]
        for path, image in zip(paths, images, strict=True):
            write_png(path, image)
        return paths
