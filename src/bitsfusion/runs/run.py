"""All steps of the method in one run folder: each done once, each resumed, all on files."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler, UNet2DConditionModel

from bitsfusion.artifact.verify import verify_folder
from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.data.batches import TrainingData
from bitsfusion.errors import InputError
from bitsfusion.files import sha256_folder, write_json
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.models.pipeline import load_pipeline, pipeline_folder
from bitsfusion.models.unet import unet_layers
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.recipe.assign import assign
from bitsfusion.recipe.schema import Recipe, check_fits, read_recipe, write_recipe
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.folder import RunFolder
from bitsfusion.runs.ladder import Ladder
from bitsfusion.runs.progress import ProgressSink
from bitsfusion.runs.sources import training_data
from bitsfusion.runs.summary import write_run_report, write_summary
from bitsfusion.sensitivity.measure import analyze
from bitsfusion.sensitivity.table import read_table
from bitsfusion.time_features.samplers import SamplerSteps
from bitsfusion.training.checkpoint import identity, load_student, save_student
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.stages import stage_one, stage_two

STEPS = ("analyze", "assign", "init", "stage1", "stage2", "control", "pack", "evaluate", "report")
"""In the order they run; `control` only if the config asks for it."""


class Run:
    """A config at work in a folder.

    Args:
        config: what to do.
        folder: where; made if it is not there, gone on with if it is.
        progress: is told what goes on.
    """

    def __init__(self, config: RunConfig, folder: Path, progress: ProgressSink | None = None) -> None:
        self.config = config
        self.progress = progress or ProgressSink()
        self.source_sha256 = sha256_folder(pipeline_folder(config.model))
        self.folder = RunFolder(folder)
        self.path = self.folder.path

    def execute(self, until: str = STEPS[-1]) -> None:
        """Runs every step up to `until`, skipping what is done.

        Raises:
            InputError: no step of that name; or whatever a step refuses.
        """
        if until not in STEPS:
            raise InputError(f"until: got {until!r}, wanted one of {', '.join(STEPS)}")
        write_json(self.path / "config.json", self.config.model_dump(mode="json"))
        try:
            for name in STEPS[: STEPS.index(until) + 1]:
                getattr(self, name)()
        finally:
            self.folder.close()

    def analyze(self) -> None:
        """Section 3.2: sensitivity.json."""
        settings = self.config.analysis

        def work() -> None:
            analyze(
                self.pipeline,
                settings,
                self.path / "sensitivity.json",
                self.data,
                model=self.config.model,
                source_sha256=self.source_sha256,
                samplers=[(name.value, steps) for name, steps in self.config.serve.samplers.items()],
                scorer=self.scorer,
                progress=lambda done, total: self.progress.update("analyze", done, total),
            )

        self._step("analyze", {"analysis": settings, "data": self.config.data}, ["sensitivity.json"], work)

    def assign(self) -> None:
        """Section 3.3: recipe.json."""
        section = self.config.recipe

        def work() -> None:
            table = read_table(self.path / "sensitivity.json")
            recipe = assign(table, section.target_bits, section.strategy, eta=section.eta)
            check_fits(recipe, unet_layers(self.pipeline.unet))
            write_recipe(self.path / "recipe.json", recipe)

        self._step("assign", {"recipe": section, "made": self.folder.made("analyze")}, ["recipe.json"], work)

    def init(self) -> None:
        """Section 4.1: the student before training, scales from the weights alone."""
        method = self.config.scale_init

        def work() -> None:
            student = copy.deepcopy(self.pipeline.unet)
            fake_quantize_model(student, self.recipe().bits, method)
            info = identity(student, {"scale_init": method.value}, "", 1)
            save_student(self.path / "init", student, info)

        self._step("init", {"scale_init": method.value, "made": self.folder.made("assign")}, ["init"], work)

    def stage1(self) -> None:
        """Section 4.2, Stage I, once for each training seed."""
        for seed in self.config.seeds:
            self._train("stage1", seed, self.config.stage1, "init", lambda: load_student(self.path / "init"))

    def stage2(self) -> None:
        """Section 4.2, Stage II, from each seed's Stage I."""
        for seed in self.config.seeds:
            start = self.path / stage_folder("stage1", seed)
            self._train("stage2", seed, self.config.stage2, f"stage1-{seed}", functools.partial(load_student, start))

    def control(self) -> None:
        """Full precision trained on as Stage II trains the student: what training alone is worth."""
        if self.config.control:
            for seed in self.config.seeds:
                self._train("control", seed, self.config.stage2, None, lambda: copy.deepcopy(self.pipeline.unet))

    def pack(self) -> None:
        """Real bits: the first seed's Stage II as a diffusers folder, verified after writing."""
        seed = self.config.seeds[0]

        def work() -> None:
            student = load_student(self.path / stage_folder("stage2", seed))
            samplers = [SamplerSteps(name.value, steps) for name, steps in self.config.serve.samplers.items()]
            provenance = {"recipe_sha256": self.recipe().sha256(), "seed": seed}
            write_pipeline(
                self.pipeline,
                student,
                self.path / "packed",
                samplers,
                source_sha256=self.source_sha256,
                provenance=provenance,
            )
            verify_folder(self.path / "packed")

        self._step("pack", {"serve": self.config.serve, "made": self.folder.made(f"stage2-{seed}")}, ["packed"], work)

    def evaluate(self) -> None:
        """Section 5: every rung on the same prompts and seeds."""
        self.ladder.score_all(self._step)

    def report(self) -> None:
        """summary.json and report/index.html."""
        made = {name: self.folder.made(name) for name in self.ladder.step_names}

        def work() -> None:
            write_summary(self)
            write_run_report(self)

        self._step("report", {"rungs": made}, ["summary.json", "report"], work)

    @functools.cached_property
    def pipeline(self) -> Any:
        """The full-precision pipeline."""
        return load_pipeline(self.config.model)

    @functools.cached_property
    def data(self) -> TrainingData:
        """What the students train on."""
        return training_data(self.config.data, self.pipeline, "train")

    @functools.cached_property
    def scorer(self) -> ClipScorer | None:
        """The CLIP model of the score."""
        return None if self.config.scorer is None else ClipScorer.from_pretrained(self.config.scorer)

    @functools.cached_property
    def ladder(self) -> Ladder:
        """The rungs and their scores."""
        return Ladder(self)

    def recipe(self) -> Recipe:
        """The assigned recipe."""
        return read_recipe(self.path / "recipe.json")

    def _train(
        self,
        stage: str,
        seed: int,
        config: TrainingConfig,
        after: str | None,
        start: Callable[[], UNet2DConditionModel],
    ) -> None:
        name, config = f"{stage}-{seed}", config.model_copy(update={"seed": seed})

        def reporter(done: int, total: int, values: dict[str, float]) -> None:
            self.progress.update(name, done, total, f"loss {values['loss']:.4f}")

        def work() -> None:
            pipeline = self.pipeline
            noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
            where = self.path / stage_folder(stage, seed)
            parts = (pipeline.text_encoder, pipeline.tokenizer, noise_scheduler, self.data, config, where, reporter)
            if config.stage == 1:
                stage_one(start(), pipeline.unet, *parts)
            else:
                stage_two(start(), *parts)
            for checkpoint in where.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)  # the finished student is all that the next steps need

        inputs: dict[str, Any] = {"training": config.deciding(), "data": self.config.data}
        if after:
            inputs["made"] = self.folder.made(after)
        self._step(name, inputs, [stage_folder(stage, seed)], work)

    def _step(self, name: str, inputs: dict[str, Any], outputs: list[str], work: Callable[[], None]) -> None:
        dumped = {key: _plain(value) for key, value in inputs.items()}
        ran = self.folder.step(name, {"source_sha256": self.source_sha256, **dumped}, outputs, work)
        self.progress.finish(name, self.folder.seconds(name) if ran else None)


def stage_folder(stage: str, seed: int) -> str:
    """Where a training stage of one seed is, relative to the run folder."""
    return f"{stage}/seed-{seed}"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
