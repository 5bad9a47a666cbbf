"""A sensitivity analysis as one value, from which a worker on another machine can load all it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitsfusion.data.batches import TrainingData
from bitsfusion.devices import AUTO, resolve
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_folder
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.pipelines.load import load_pipeline, pipeline_folder
from bitsfusion.progress import Progress, silent
from bitsfusion.runs.config import DataSource
from bitsfusion.runs.sources import training_data
from bitsfusion.sensitivity.measure import Counted, analyze, candidates, empty_table, rows_done
from bitsfusion.sensitivity.plan import Plan, plan
from bitsfusion.sensitivity.ray_workers import RayWorkers
from bitsfusion.sensitivity.settings import FirstOrderOptions, Settings
from bitsfusion.sensitivity.table import SensitivityTable
from bitsfusion.sensitivity.workers import Method, build_method


@dataclass(frozen=True)
class AnalysisJob:
    """What to measure.

    Fields:
        model: see `pipelines.load.load_pipeline`; on a cluster, a path that every machine has.
        settings: of the method.
        data: what candidates are measured or trained on; paths as for the model.
        samplers: whose time features a recipe is to count.
        clip: CLIP model of the score's drop, a folder or hub id.
        device: where it measures, by its name; each worker finds its own.
    """

    model: str
    settings: Settings
    data: DataSource
    samplers: Counted
    clip: str | None = None
    device: str = AUTO

    def load(self) -> tuple[Any, TrainingData]:
        """The pipeline on its device, and the data."""
        device = resolve(self.device)
        pipeline = load_pipeline(self.model).to(device)
        return pipeline, training_data(self.data, pipeline, "train", device=device)

    def scorer(self) -> ClipScorer | None:
        """The CLIP model, if there is one."""
        return None if self.clip is None else ClipScorer.from_pretrained(self.clip, str(resolve(self.device)))

    def method(self) -> Method:
        """The measurement of single candidates, with a model of its own: what a worker builds."""
        settings = self.settings
        if isinstance(settings, FirstOrderOptions):
            raise _all_at_once(settings)
        pipeline, data = self.load()
        return build_method(pipeline, settings, data, self.scorer())

    def workers(self, count: int, address: str | None = None, cpus: int | None = None) -> RayWorkers:
        """`count` processes that measure; each has an accelerator of its own where `device` is one."""
        if isinstance(self.settings, FirstOrderOptions):
            raise _all_at_once(self.settings)
        gpus = 0 if resolve(self.device).type == "cpu" else 1
        model = str(Path(self.model).resolve()) if Path(self.model).exists() else self.model
        job = replace(self, model=model, device=self.device.partition(":")[0])  # Ray shows a worker its own alone
        return RayWorkers(job.method, count, address=address, cpus=cpus, gpus=gpus)

    def run(
        self,
        out: Path,
        workers: RayWorkers | None = None,
        progress: Progress = silent,
    ) -> SensitivityTable:
        """Measures what `out` does not have yet; see `sensitivity.measure.analyze`."""
        pipeline, data = self.load()
        return analyze(
            pipeline,
            self.settings,
            out,
            data,
            model=self.model,
            source_sha256=sha256_folder(pipeline_folder(self.model)),
            samplers=self.samplers,
            scorer=self.scorer(),
            workers=workers,
            progress=progress,
        )

    def plan(self, out: Path) -> Plan:
        """What `run` will cost."""
        pipeline, data = self.load()
        table = empty_table(
            pipeline,
            self.settings,
            data,
            model=self.model,
            source_sha256=sha256_folder(pipeline_folder(self.model)),
            samplers=self.samplers,
            clip_scorer=self.clip is not None,
        )
        return plan(pipeline, self.settings, data, candidates(table), rows_done(out, table))


def _all_at_once(settings: Any) -> InputError:
    return InputError(
        f"workers: got the {settings.method} method, which measures all layers at once, wanted no workers"
    )
