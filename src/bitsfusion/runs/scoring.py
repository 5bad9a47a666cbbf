"""How the models of a run are scored: the same prompts and image seeds, the same noisy latents, the same teacher."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from bitsfusion.devices import placed
from bitsfusion.diffusion.denoise import with_denoiser
from bitsfusion.embedded import MODELS
from bitsfusion.evaluation.drawing import Sampling, draw
from bitsfusion.evaluation.noise import NoiseProbe, make_probe, mean_squared, predict
from bitsfusion.evaluation.prompts import PromptSet, file_prompts, world_prompts
from bitsfusion.evaluation.rungs import RungScores, load_images, score_images
from bitsfusion.runs.workspace import Workspace

PROBE_SEED = 77
RELOAD_CHECK = 24
"""Images drawn both by a packed folder and by the model as trained."""


@dataclass(frozen=True)
class Packed:
    """What draws in a model's place: the folder that was packed from it, and the model as the folder computes it."""

    pipeline: DiffusionPipeline
    trained: ModelMixin


class Scoring:
    """Scores models of one workspace; what they share is made once, when it is first needed."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    @functools.cached_property
    def prompts(self) -> PromptSet:
        """What the images are asked to show: those of the config's file, or the drawn world's of its split."""
        section = self.workspace.config.evaluation
        if section.prompts is not None:
            return file_prompts(section.prompts, section.seed)
        known = MODELS[self.workspace.config.model]
        return world_prompts(known.world, section.split, section.per_task, section.seed)

    def score(
        self,
        step: str,
        name: str,
        seed: int | None,
        model: ModelMixin,
        folder: Path,
        reference: Path | None,
        guidance: float | None = None,
        packed: Callable[[], Packed] | None = None,
    ) -> None:
        """Draws with `model`, measures, and writes images and scores to `folder` (see `RungScores`).

        All of it computes on the workspace's device; models are afterwards where they were.

        Args:
            step: what progress is reported as.
            name, seed: of the scores.
            reference: where full precision's images are; None for full precision itself.
            guidance: another than the config's.
            packed: of a packed model.
        """
        started, ours = time.monotonic(), self.workspace
        section, report = ours.config.evaluation, ours.progress.step(step)
        scale = section.guidance if guidance is None else guidance
        sampling = Sampling(section.sampler.value, section.steps, scale, section.batch_size)
        reload_difference = None
        with ours.placed(), placed(model, ours.device):
            stored = None if packed is None else packed()
            pipeline = stored.pipeline.to(ours.device) if stored else with_denoiser(ours.pipeline, model)
            images = draw(pipeline, self.prompts, sampling, report)
            predicted = predict(model, self._probe)
            if stored is not None:
                few = self.prompts.chosen(range(min(RELOAD_CHECK, len(images))))
                again = draw(with_denoiser(ours.pipeline, stored.trained), few, sampling, report)
                reload_difference = int(np.abs(images[: len(again)].astype(int) - again.astype(int)).max())
            original = None if reference is None else load_images(reference)
            RungScores(
                name=name,
                seed=seed,
                **score_images(images, self.prompts, original, ours.scorer),
                noise_error=mean_squared(predicted, self._teacher_prediction),
                noise_loss=mean_squared(predicted, self._probe.target),
                seconds=round(time.monotonic() - started, 2),
                reload_difference=reload_difference,
            ).save(folder, images)

    @functools.cached_property
    def _probe(self) -> NoiseProbe:
        ours = self.workspace
        count = ours.config.evaluation.probe_samples
        return make_probe(ours.held_out, ours.pipeline, count, PROBE_SEED)

    @functools.cached_property
    def _teacher_prediction(self) -> Tensor:
        return predict(self.workspace.denoiser, self._probe)
