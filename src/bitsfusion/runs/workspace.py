"""What all steps of a run share: its config, its folder, and the models and data loaded once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bitsfusion.data.batches import TrainingData
from bitsfusion.devices import placed, resolve
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.time_features import BASIS, Cover
from bitsfusion.io.hashes import sha256_folder
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.pipelines.load import load_pipeline, pipeline_folder
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.recipe.schema import Recipe, read_recipe
from bitsfusion.runs.config import ImageSection, RunConfig
from bitsfusion.runs.folder import RunFolder
from bitsfusion.runs.sources import training_data
from bitsfusion.sensitivity.measure import Counted, analyze
from bitsfusion.sensitivity.settings import Settings
from bitsfusion.training.ranks import Ranks

SENSITIVITY = "sensitivity.json"


class Workspace:
    """A config and the folder it works in.

    Args:
        config: what to do.
        folder: where; made if it is not there.
        progress: is told what is being done.

    Raises:
        InputError: no such model or device, or another process works in the folder.
    """

    def __init__(self, config: RunConfig, folder: Path, progress: ProgressSink = SILENT) -> None:
        self.config = config
        self.progress = progress
        self.source_sha256 = sha256_folder(pipeline_folder(config.model))
        ranks = Ranks(resolve(config.device))
        self.device = ranks.device
        self.folder = RunFolder(folder, ranks)
        self.path = self.folder.path

    def step(
        self, name: str, inputs: Mapping[str, Any], outputs: list[str], work: Callable[[], None], joint: bool = False
    ) -> None:
        """Runs `work` unless it is done; see `RunFolder.step`. The model itself is an input of every step."""
        plain = {key: _plain(value) for key, value in inputs.items()}
        ran = self.folder.step(name, {"source_sha256": self.source_sha256, **plain}, outputs, work, joint)
        self.progress.finish(name, self.folder.seconds(name) if ran else None)

    def made(self, step: str) -> dict[str, str]:
        """The outputs of a finished step with their SHA-256, for the inputs of those that follow."""
        return dict(self.folder.made(step))

    def close(self) -> None:
        """Lets other processes use the folder."""
        self.folder.close()

    @property
    def covers(self) -> Cover:
        """What the packed model stores of the time features."""
        return self.config.serve.covers

    @property
    def counted(self) -> Counted:
        """The same, as a measurement records it."""
        serve = self.config.serve
        return tuple(serve.samplers.items()) if serve.samplers is not None else BASIS if serve.covers else None

    @functools.cached_property
    def pipeline(self) -> Any:
        """The full-precision pipeline, on the CPU unless it is `placed`."""
        return load_pipeline(self.config.model)

    def placed(self) -> AbstractContextManager[None]:
        """Inside, the pipeline is on the run's device: for steps that draw or measure."""
        return placed(self.pipeline, self.device)

    @property
    def denoiser(self) -> Any:
        """The pipeline's model that is called once a step."""
        return pipeline_denoiser(self.pipeline)

    @functools.cached_property
    def data(self) -> TrainingData:
        """What the students train on."""
        return training_data(self.config.data, self.pipeline, "train", self.progress, device=self.device)

    @functools.cached_property
    def held_out(self) -> TrainingData:
        """What they are measured on."""
        return training_data(
            self.config.data, self.pipeline, self.config.evaluation.split, self.progress, device=self.device
        )

    @functools.cached_property
    def scorer(self) -> ClipScorer | None:
        """The CLIP model of the score."""
        source = self.config.scorer
        return None if source is None else ClipScorer.from_pretrained(source, str(self.device))

    def analyze(self, settings: Settings, scorer: ClipScorer | None = None, table: str = SENSITIVITY) -> None:
        """Measures the file `table` of the folder on the run's device; see `sensitivity.measure.analyze`."""
        data = self.data
        with self.placed():
            analyze(
                self.pipeline,
                settings,
                self.path / table,
                data,
                model=self.config.model,
                source_sha256=self.source_sha256,
                samplers=self.counted,
                scorer=scorer,
                progress=self.progress.step("analyze"),
            )

    def recipe(self) -> Recipe:
        """The assigned recipe."""
        return read_recipe(self.path / "recipe.json")


def stage_folder(stage: str, seed: int) -> str:
    """Where a training stage of one seed is, relative to the run folder."""
    return f"{stage}/seed-{seed}"


def _plain(value: Any) -> Any:
    if isinstance(value, ImageSection):
        return value.deciding()
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
