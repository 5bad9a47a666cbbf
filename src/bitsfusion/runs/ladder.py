"""The rungs of a run: full precision, the untrained student, each stage, the control; all scored alike."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsfusion.diffusion.time_features import cache_time_features, choose_features
from bitsfusion.evaluation.noise import CURVE_SAMPLES, time_step_curve
from bitsfusion.evaluation.prompts import PromptSet
from bitsfusion.evaluation.rungs import SCHEMA_VERSION, RungScores
from bitsfusion.io.texts import write_json
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.scoring import Packed, Scoring
from bitsfusion.runs.workspace import Workspace, stage_folder
from bitsfusion.training.checkpoint import load_student

FULL_PRECISION = "full_precision"


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
        self.workspace, self.scoring = workspace, Scoring(workspace)
        config = workspace.config
        self.models = [RungModel(FULL_PRECISION, None, None), RungModel("init", None, "init")]
        for stage in ("stage1", "stage2", *(["control"] if config.control else [])):
            self.models += [RungModel(stage, seed, f"{stage}-{seed}") for seed in config.seeds]
        self.packed = RungModel("stage2", config.seeds[0], f"stage2-{config.seeds[0]}")

    @property
    def step_names(self) -> list[str]:
        """The scoring steps."""
        return [f"score-{model.step}" for model in self.models] + ["time-steps"]

    @property
    def prompts(self) -> PromptSet:
        """What the images are asked to show."""
        return self.scoring.prompts

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
                inputs["made"] = self.workspace.made(model.made_by)
            if model == self.packed:
                inputs["packed"] = self.workspace.made("pack")
            if model != self.models[0]:
                inputs["reference"] = self.workspace.made(f"score-{FULL_PRECISION}")
            step(f"score-{model.step}", inputs, [f"rungs/{model.step}"], functools.partial(self._score, model))
        made = {model.step: self.workspace.made(model.made_by) for model in self._curves().values() if model.made_by}
        step(
            "time-steps",
            {"data": self.workspace.config.data, "split": section.split, "made": made, "each": self._each},
            ["time_steps.json"],
            self._time_steps,
        )

    def _score(self, model: RungModel) -> None:
        original, unet = self.models[0], self._unet(model)

        def packed() -> Packed:
            trained = copy.deepcopy(unet)
            choice = choose_features(trained, self.workspace.covers, self.workspace.pipeline.scheduler.config)
            if choice.features is not None:
                cache_time_features(trained, choice.features)
            return Packed(load_pipeline(str(self.workspace.path / "packed")), trained)

        self.scoring.score(
            f"score-{model.step}",
            model.name,
            model.seed,
            unet,
            self.folder(model),
            None if model == original else self.folder(original),
            packed=packed if model == self.packed else None,
        )

    def _unet(self, model: RungModel) -> Any:
        if model.made_by is None:
            return self.workspace.denoiser
        folder = model.name if model.seed is None else stage_folder(model.name, model.seed)
        return load_student(self.workspace.path / folder).to(self.workspace.device)

    def _curves(self) -> dict[str, RungModel]:
        first: dict[str, RungModel] = {}
        for model in self.models:
            if model.name in ("init", "stage1", "stage2"):
                first.setdefault(model.name, model)
        return first

    @property
    def _each(self) -> int:
        """Samples at each time step of a curve."""
        return min(CURVE_SAMPLES, self.workspace.config.evaluation.probe_samples)

    def _time_steps(self) -> None:
        """Eq. 9's curve of each quantized rung."""
        pipeline, held_out = self.workspace.pipeline, self.workspace.held_out
        with self.workspace.placed():
            curves = {
                name: time_step_curve(self._unet(model), pipeline, held_out, each=self._each)
                for name, model in self._curves().items()
            }
        write_json(self.workspace.path / "time_steps.json", {"schema_version": 1, "latent_error": curves})
