"""All steps of the method in one run folder: each done once, each resumed, all on files."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.errors import InputError
from bitsfusion.io.texts import write_json
from bitsfusion.numerics import ScaleInit
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.recipe.assign import assign
from bitsfusion.recipe.schema import check_fits, write_recipe
from bitsfusion.runs.calibration import CALIBRATED, CalibrationJob
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.ladder import Ladder
from bitsfusion.runs.report import added_files, write_run_report
from bitsfusion.runs.students import Start, made_by, save_start, train_student
from bitsfusion.runs.summary import rungs, write_summary
from bitsfusion.runs.workspace import SENSITIVITY, Workspace, stage_folder
from bitsfusion.sensitivity.table import read_table
from bitsfusion.training.checkpoint import load_student
from bitsfusion.training.config import TrainingConfig

STEPS = ("analyze", "assign", "init", "stage1", "stage2", "control", "pack", "evaluate", "report")
"""In the order they run; `control` only if the config asks for it."""


class Run:
    """The steps of one config in one folder; a step's name is its method's. Arguments and errors as `Workspace`."""

    def __init__(self, config: RunConfig, folder: Path, progress: ProgressSink = SILENT) -> None:
        self.workspace = Workspace(config, folder, progress)
        self.ladder = Ladder(self.workspace)
        self.config, self.path = config, self.workspace.path

    def execute(self, until: str = STEPS[-1]) -> None:
        """Runs every step up to `until`, skipping what is done.

        Raises:
            InputError: no step of that name; or whatever a step refuses.
        """
        try:
            if until not in STEPS:
                raise InputError(f"until: got {until!r}, wanted one of {', '.join(STEPS)}")
            if self.workspace.folder.ranks.main:
                write_json(self.path / "config.json", self.config.model_dump(mode="json"))
            if self.workspace.folder.ranks.count > 1:
                _ = self.workspace.data  # encoded by all processes together, before the main one works alone
            for name in STEPS[: STEPS.index(until) + 1]:
                getattr(self, name)()
        finally:
            self.workspace.close()

    def analyze(self) -> None:
        """Section 3.2: sensitivity.json."""
        ours, settings = self.workspace, self.config.measured()
        inputs = {"analysis": settings, "data": self.config.data, "serve": self.config.serve.deciding()}
        ours.step("analyze", inputs, [SENSITIVITY], lambda: ours.analyze(settings, ours.scorer))

    def assign(self) -> None:
        """Section 3.3: recipe.json."""
        section = self.config.recipe

        def work() -> None:
            table = read_table(self.path / SENSITIVITY)
            recipe = assign(table, section.target_bits, section.strategy, eta=section.eta, fill_up=section.fill_up)
            check_fits(recipe, model_layers(self.workspace.denoiser))
            write_recipe(self.path / "recipe.json", recipe)

        self.workspace.step(
            "assign", {"recipe": section.deciding(), "made": self.workspace.made("analyze")}, ["recipe.json"], work
        )

    def init(self) -> None:
        """Section 4.1: the student before training, scales from the weights alone, or calibrated."""
        config, ours = self.config, self.workspace
        start: Start
        if config.scale_init == CALIBRATED:
            start = CalibrationJob(config.calibration_prompts, config.calibration, str(ours.device))
        else:
            start = ScaleInit(config.scale_init)

        def work() -> None:
            save_start(ours, self.path / "init", ours.recipe().bits, start)

        ours.step("init", made_by(start, config.model) | {"made": ours.made("assign")}, ["init"], work)

    def stage1(self) -> None:
        """Section 4.2, Stage I, once for each training seed."""
        for seed in self.config.seeds:
            self._train("stage1", seed, self.config.stage1, "init", lambda: load_student(self.path / "init"))

    def stage2(self) -> None:
        """Section 4.2, Stage II, from each seed's Stage I."""
        for seed in self.config.seeds:
            start = functools.partial(load_student, self.path / stage_folder("stage1", seed))
            self._train("stage2", seed, self.config.stage2, f"stage1-{seed}", start)

    def control(self) -> None:
        """Full precision trained on as Stage II trains the student: what training alone is worth."""
        if self.config.control:
            for seed in self.config.seeds:
                start = functools.partial(copy.deepcopy, self.workspace.denoiser)
                self._train("control", seed, self.config.stage2, None, start)

    def pack(self) -> None:
        """Real bits: the first seed's Stage II as a diffusers folder, verified after writing."""
        ours, seed = self.workspace, self.config.seeds[0]

        def work() -> None:
            write_pipeline(
                ours.pipeline,
                load_student(self.path / stage_folder("stage2", seed)),
                self.path / "packed",
                ours.covers,
                source_sha256=ours.source_sha256,
                provenance={"recipe_sha256": ours.recipe().sha256(), "seed": seed},
            )
            verify_folder(self.path / "packed")

        ours.step(
            "pack", {"serve": self.config.serve.deciding(), "made": ours.made(f"stage2-{seed}")}, ["packed"], work
        )

    def evaluate(self) -> None:
        """Section 5: every rung on the same prompts and seeds."""
        self.ladder.score_all()

    def report(self) -> None:
        """summary.json and report/index.html."""

        def work() -> None:
            found, inspection = rungs(self.ladder), inspect_folder(self.path / "packed")
            write_summary(self.ladder, found, inspection)
            write_run_report(self.ladder, found, inspection)

        made = {name: self.workspace.made(name) for name in self.ladder.step_names}
        inputs: dict[str, Any] = {"rungs": made} | ({"beside": added} if (added := added_files(self.path)) else {})
        self.workspace.step("report", inputs, ["summary.json", "report"], work)

    def _train(
        self,
        stage: str,
        seed: int,
        config: TrainingConfig,
        after: str | None,
        start: Callable[[], ModelMixin],
    ) -> None:
        ours, name, folder = self.workspace, f"{stage}-{seed}", stage_folder(stage, seed)
        config = config.model_copy(update={"seed": seed, "device": self.config.device})

        def work() -> None:
            train_student(ours, start(), config, self.path / folder, name)

        deciding = config.deciding(ours.folder.ranks.count)
        inputs: dict[str, Any] = {"training": deciding, "data": self.config.data}
        if after:
            inputs["made"] = ours.made(after)
        ours.step(name, inputs, [folder], work, joint=True)
