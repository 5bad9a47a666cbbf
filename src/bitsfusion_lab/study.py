"""The models of one folder, each made and scored once: after a kill the same command continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitsfusion.architectures.layers import LayerInfo
from bitsfusion.architectures.registry import model_layers
from bitsfusion.evaluation.rungs import SCHEMA_VERSION, RungScores
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.recipe.schema import Recipe, read_recipe, write_recipe
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.scoring import Scoring
from bitsfusion.runs.students import Start, made_by, save_start, train_student
from bitsfusion.runs.workspace import SENSITIVITY, Workspace
from bitsfusion.sensitivity.settings import Settings
from bitsfusion.sensitivity.table import SensitivityTable, read_table
from bitsfusion.training.checkpoint import load_student
from bitsfusion.training.config import TrainingConfig

FULL_PRECISION = "full_precision"


class Study:
    """A folder of steps, each done once (see `RunFolder`); what a step made is an input of those that follow.

    Args:
        config: model, data, calibration and evaluation.
        out: the folder.

    Raises:
        InputError: as `Workspace`.
    """

    def __init__(self, config: RunConfig, out: Path, progress: ProgressSink = SILENT) -> None:
        self.config, self.workspace = config, Workspace(config, out, progress)
        self.path, self.step, self.made = self.workspace.path, self.workspace.step, self.workspace.made
        self.scoring = Scoring(self.workspace)

    def close(self) -> None:
        """Lets other processes use the folder."""
        self.workspace.close()

    @property
    def model(self) -> Any:
        """Full precision's denoiser; not to be changed."""
        return self.workspace.denoiser

    @property
    def layers(self) -> dict[str, LayerInfo]:
        """Its layers."""
        return model_layers(self.model)

    def analyze(self, step: str, settings: Settings, table: str = SENSITIVITY) -> None:
        """The step that measures the file `table`."""
        inputs = {"analysis": settings, "data": self.config.data}
        self.step(step, inputs, [table], lambda: self.workspace.analyze(settings, table=table))

    def assign(
        self,
        step: str,
        inputs: Mapping[str, Any],
        file: str,
        make: Callable[[SensitivityTable], Recipe],
        analyzed: str = "analyze",
        table: str = SENSITIVITY,
    ) -> Recipe:
        """The recipe of `file`, made from what step `analyzed` measured."""

        def work() -> None:
            write_recipe(self.path / file, make(read_table(self.path / table)))

        self.step(step, {**inputs, "made": self.made(analyzed)}, [file], work)
        return read_recipe(self.path / file)

    def start(
        self, step: str, follows: Mapping[str, Any], folder: str, bits: Mapping[str, int], start: Start, **notes: Any
    ) -> None:
        """The step of an untrained student; see `save_start`. `follows`: what its bits follow from."""
        inputs = {**follows, **made_by(start, self.config.model), **notes}
        self.step(step, inputs, [folder], lambda: save_start(self.workspace, self.path / folder, bits, start, **notes))

    def train(self, step: str, begun: str, start: str, folder: str, config: TrainingConfig) -> None:
        """The step of a student trained from the one in folder `start`, which step `begun` made."""

        def work() -> None:
            train_student(self.workspace, load_student(self.path / start), config, self.path / folder, step)

        inputs = {"training": config.deciding(1), "data": self.config.data, "made": self.made(begun)}
        self.step(step, inputs, [folder], work)

    def score(
        self,
        place: str,
        name: str,
        seed: int | None,
        load: Callable[[], Any],
        inputs: Mapping[str, Any],
        reference: str | None,
        guidance: float | None = None,
    ) -> RungScores:
        """Images and scores of one model, in folder `place`; the step is named after it.

        Args:
            name, seed: of the scores.
            load: gives the model when it is needed.
            inputs: what the model was made as.
            reference: the place of full precision's; None for full precision itself.
            guidance: another than the config's.
        """
        section = self.config.evaluation
        if guidance is not None:
            section = section.model_copy(update={"guidance": guidance})

        def work() -> None:
            original = None if reference is None else self.path / reference
            self.scoring.score(step_of(place), name, seed, load(), self.path / place, original, section.guidance)

        self.step(step_of(place), {"scores": SCHEMA_VERSION, "evaluation": section, **inputs}, [place], work)
        return RungScores.load(self.path / place)


def step_of(place: str) -> str:
    """The step that scores: "score-NAME" of "scores/NAME"."""
    return place.replace("scores/", "score-").replace("/", "-")
