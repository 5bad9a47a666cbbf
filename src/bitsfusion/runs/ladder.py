"""The rungs of a run: full precision, the untrained student, each stage, the control; all scored alike."""

from __future__ import annotations

import copy
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsfusion.diffusion.denoise import with_denoiser
from bitsfusion.diffusion.time_features import cache_time_features, choose_features
from bitsfusion.evaluation.noise import make_probe, mean_squared, predict, time_step_curve
from bitsfusion.evaluation.prompts import PromptSet, file_prompts, world_prompts
from bitsfusion.evaluation.rungs import SCHEMA_VERSION, RungScores, load_images, score_images
from bitsfusion.io.files import write_json
from bitsfusion.metrics.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.workspace import Workspace, stage_folder
from bitsfusion.training.checkpoint import load_student

PROBE_SEED = 77
RELOAD_CHECK = 24  # images drawn both by the packed folder and by the model as trained


@dataclass(frozen=True)
class RungModel:
    """One model to score: the rung's name, the training seed, and the step that made it (None: nothing did)."""

    name: str
    seed: int | None
    made_by: str | None

    @property
    def step(self) -> str:
        """The name of its scoring step, and of its folder under `rungs/`."""
        return self.name if self.seed is None else f"{self.name}-{self.seed}"


class Ladder:
    """Scores every rung of a run on the same prompts, seeds and noisy latents."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        config = workspace.config
        self.models = [RungModel("full_precision", None, None), RungModel("init", None, "init")]
        for stage in ("stage1", "stage2", *(["control"] if config.control else [])):
            self.models += [RungModel(stage, seed, f"{stage}-{seed}") for seed in config.seeds]
        self.packed = RungModel("stage2", config.seeds[0], f"stage2-{config.seeds[0]}")

    @property
    def step_names(self) -> list[str]:
        """The scoring steps."""
        return [f"score-{model.step}" for model in self.models] + ["time-steps"]

    @functools.cached_property
    def prompts(self) -> PromptSet:
        """What the images are asked to show."""
        section = self.workspace.config.evaluation
        if section.prompts is not None:
            return file_prompts(section.prompts, section.seed)
        return world_prompts(section.split, section.per_task, section.seed)

    def folder(self, model: RungModel) -> Path:
        """Where its images and scores are."""
        return self.workspace.path / "rungs" / model.step

    def scores(self, name: str) -> list[RungScores]:
        """The scores of a rung, one a training seed."""
        return [RungScores.load(self.folder(model)) for model in self.models if model.name == name]

    def score_all(self) -> None:
        """Scores what is not scored yet."""
        step = self.workspace.step
        section = self.workspace.config.evaluation
        common = {
            "scores": SCHEMA_VERSION,
            "evaluation": section,
            "prompts_sha256": self.prompts.sha256,
            "data": self.workspace.config.data,
        }
        for model in self.models:
            inputs = dict(common)
            if model.made_by is not None:
                inputs["made"] = self.workspace.folder.made(model.made_by)
            if model == self.packed:
                inputs["packed"] = self.workspace.folder.made("pack")
            if model != self.models[0]:
                inputs["reference"] = self.workspace.folder.made("score-full_precision")
            step(f"score-{model.step}", inputs, [f"rungs/{model.step}"], functools.partial(self._score, model))
        made = {
            model.step: self.workspace.folder.made(model.made_by) for model in self._curves().values() if model.made_by
        }
        step(
            "time-steps",
            {"data": self.workspace.config.data, "split": section.split, "made": made},
            ["time_steps.json"],
            self._time_steps,
        )

    def _score(self, model: RungModel) -> None:
        started = time.monotonic()
        unet, reload_difference = self._unet(model), None
        if model == self.packed:
            pipeline = load_pipeline(str(self.workspace.path / "packed"))
            images = self._draw(pipeline, self.prompts, model)
            trained = copy.deepcopy(unet)
            choice = choose_features(trained, self.workspace.covers, self.workspace.pipeline.scheduler.config)
            if choice.features is not None:
                cache_time_features(trained, choice.features)
            few = PromptSet(self.prompts.texts[:RELOAD_CHECK], self.prompts.seeds[:RELOAD_CHECK])
            again = self._draw(self._with_unet(trained), few, model)
            reload_difference = int(np.abs(images[: len(again)].astype(int) - again.astype(int)).max())
        else:
            images = self._draw(self._with_unet(unet), self.prompts, model)
        original = self.models[0]
        reference = None if model == original else load_images(self.folder(original))
        predicted = predict(unet, self._probe)
        scores = RungScores(
            name=model.name,
            seed=model.seed,
            **score_images(images, self.prompts, reference, self.workspace.scorer),
            noise_error=mean_squared(predicted, self._teacher_prediction),
            noise_loss=mean_squared(predicted, self._probe.target),
            seconds=round(time.monotonic() - started, 2),
            reload_difference=reload_difference,
        )
        scores.save(self.folder(model), images)

    def _draw(self, pipeline: Any, prompts: PromptSet, model: RungModel) -> Any:
        section = self.workspace.config.evaluation
        return generate_images(
            pipeline,
            prompts.texts,
            prompts.seeds,
            steps=section.steps,
            guidance=section.guidance,
            sampler=section.sampler,
            batch_size=section.batch_size,
            progress=lambda done, total: self.workspace.progress.update(f"score-{model.step}", done, total),
        )

    def _unet(self, model: RungModel) -> Any:
        if model.made_by is None:
            return self.workspace.denoiser
        folder = model.name if model.seed is None else stage_folder(model.name, model.seed)
        return load_student(self.workspace.path / folder)

    def _with_unet(self, unet: Any) -> Any:
        return with_denoiser(self.workspace.pipeline, unet)

    def _curves(self) -> dict[str, RungModel]:
        first: dict[str, RungModel] = {}
        for model in self.models:
            if model.name in ("init", "stage1", "stage2"):
                first.setdefault(model.name, model)
        return first

    def _time_steps(self) -> None:
        """Eq. 9's curve of each quantized rung."""
        curves = {
            name: time_step_curve(self._unet(model), self.workspace.pipeline, self.workspace.held_out)
            for name, model in self._curves().items()
        }
        write_json(self.workspace.path / "time_steps.json", {"schema_version": 1, "latent_error": curves})

    @functools.cached_property
    def _probe(self) -> Any:
        count = self.workspace.config.evaluation.probe_samples
        return make_probe(self.workspace.held_out, self.workspace.pipeline, count, PROBE_SEED)

    @functools.cached_property
    def _teacher_prediction(self) -> Any:
        return predict(self.workspace.denoiser, self._probe)
