"""The models of one folder, each made, written and scored once: after a kill the same command continues."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from bitsfusion.architectures.layers import LayerInfo
from bitsfusion.architectures.registry import model_layers
from bitsfusion.evaluation.rungs import SCHEMA_VERSION, RungScores
from bitsfusion.io.schema import Checked, parse
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.nn.rounded import put_rounded
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.recipe.assign import Strategy, assign
from bitsfusion.recipe.schema import read_recipe, write_recipe
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.scoring import Scoring
from bitsfusion.runs.workspace import Workspace
from bitsfusion.sensitivity.settings import JacobianSettings
from bitsfusion.sensitivity.table import read_table
from bitsfusion.training.checkpoint import identity, load_student, save_student
from bitsfusion.training.config import TimeStepConfig, TrainingConfig
from bitsfusion.training.loop import train
from bitsfusion_lab.flow.peers import PEERS, Peer, apply_peer
from bitsfusion_lab.flow.tail import fill_tail, round_tail, tail_first, ternary_bits, write_file

MODEL = "embedded:flow"
FULL_PRECISION = "full_precision"
_FILE = "model.safetensors"


class Settings(Checked):
    """How much of everything."""

    bits: float = Field(1.99, gt=1)
    """Of the mixed recipe."""
    steps: int = Field(150, ge=1)
    """Of Stage I."""
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    seeds: tuple[int, ...] = (0, 1, 2)
    per_task: int = Field(15, ge=1)
    """Prompts of each of eight tasks."""
    sampler_steps: int = Field(20, ge=1)
    analysis_samples: int = Field(128, ge=1)
    calibration_samples: int = Field(24, ge=1)
    pool: int = Field(4096, ge=1)
    """Scenes that training draws from."""


@dataclass(frozen=True)
class Arm:
    """One way to about two bits.

    Fields:
        name: of its folders.
        title: what the table calls it.
        mixed: the recipe; else uniform ternary with an FP16 tail.
        calibrated: where it starts from; else scales of least weight error.
        trained: by Stage I, once for each seed.
    """

    name: str
    title: str
    mixed: bool
    calibrated: bool
    trained: bool = False

    @property
    def start(self) -> str:
        """The folder of what it is before training."""
        return f"{'mixed' if self.mixed else 'ternary'}-{'calibrated' if self.calibrated else 'plain'}"


ARMS = (
    Arm("mixed_plain", "mixed, untrained", mixed=True, calibrated=False),
    Arm("ternary_plain", "ternary, FP16 tail, untrained", mixed=False, calibrated=False),
    Arm("mixed_calibrated", "mixed, calibrated, untrained", mixed=True, calibrated=True),
    Arm("ternary_calibrated", "ternary, FP16 tail, calibrated, untrained", mixed=False, calibrated=True),
    Arm("mixed_trained", "mixed, calibrated and trained", mixed=True, calibrated=True, trained=True),
    Arm("ternary_trained", "ternary, FP16 tail, calibrated and trained", mixed=False, calibrated=True, trained=True),
    Arm("mixed_plain_trained", "mixed, trained from the plain start", mixed=True, calibrated=False, trained=True),
)
"""In the order of the table; see `order` for that of the work."""


class Study:
    """A folder of steps, each done once; what a step made is an input of those that follow."""

    def __init__(self, settings: Settings, out: Path, progress: ProgressSink = SILENT) -> None:
        """Opens folder `out`.

        Raises:
            InputError: another process works there.
        """
        values: dict[str, Any] = {
            "model": MODEL,
            "device": "cpu",
            "data": {"kind": "world", "world": "grid", "pool": settings.pool},
            "calibration": {"samples": settings.calibration_samples},
            "serve": {"cover": "any"},
            "evaluation": {
                "per_task": settings.per_task,
                "steps": settings.sampler_steps,
                "batch_size": 60,
                "probe_samples": 64,
            },
        }
        self.settings = settings
        self.config = parse(RunConfig, values, "flow")
        self.workspace = Workspace(self.config, out, progress)
        self.path, self.scoring = self.workspace.path, Scoring(self.workspace)

    def close(self) -> None:
        """Lets other processes use the folder."""
        self.workspace.folder.close()

    @property
    def _analysis(self) -> JacobianSettings:
        return JacobianSettings(samples=self.settings.analysis_samples, guidance=self.config.evaluation.guidance)

    @property
    def model(self) -> Any:
        """Full precision's; not to be changed."""
        return self.workspace.denoiser

    @property
    def layers(self) -> dict[str, LayerInfo]:
        """Its layers."""
        return model_layers(self.model)

    def full_precision(self) -> RungScores:
        """The original's scores, and the size of its file in FP16."""

        def write(folder: Path) -> int:
            half = copy.deepcopy(self.model).half()
            half.save_pretrained(folder)
            return sum(file.stat().st_size for file in folder.glob("*.safetensors"))

        self._measure("size-full_precision", {}, f"files/{FULL_PRECISION}", write)
        return self._score(FULL_PRECISION, None, lambda: self.model, {})

    def arm(self, arm: Arm, seed: int | None) -> RungScores:
        """Makes one model of an arm where it is not made yet, writes its file and scores it."""
        made = self._trained(arm, seed) if arm.trained and seed is not None else self._start(arm)
        name = _label(arm.name, seed)
        folder = self.path / (f"trained/{name}" if arm.trained else f"starts/{arm.start}")
        tail = [] if arm.mixed else self.tail()

        def load() -> Any:
            student = load_student(folder)
            round_tail(student, tail)
            return student

        inputs = {"made": self._made(made)}
        self._measure(f"size-{name}", inputs, f"files/{name}", lambda out: write_file(load(), out, tail))
        return self._score(arm.name, seed, load, inputs)

    def peer(self, peer: Peer) -> RungScores:
        """The same of another library's."""
        made: dict[str, Any] = {"peer": peer.title}
        kept: list[Any] = []

        def write(out: Path) -> int:
            out.mkdir(parents=True)
            kept.append(apply_peer(peer, self.model, out / _FILE))
            shutil.rmtree(out / "dense", ignore_errors=True)
            return (out / _FILE).stat().st_size

        def load() -> Any:
            if not kept:  # written by an earlier call: making it again gives the same
                again = self.path / f"again-{peer.name}"
                shutil.rmtree(again, ignore_errors=True)
                write(again)
                shutil.rmtree(again)
            return kept[0]

        self._measure(f"size-{peer.name}", made, f"files/{peer.name}", write)
        return self._score(peer.name, None, load, made)

    def bytes(self, name: str, seed: int | None = None) -> int:
        """Of the file of a model that was scored."""
        return int(read_json(self.path / f"files/{_label(name, seed)}.json")["bytes"])

    def tail(self) -> list[str]:
        """The layers that stay in FP16 beside ternary ones: the file is then as large as the mixed recipe's."""
        bits = self._recipe()
        file = self.path / "tail.json"

        def work() -> None:
            mixed = copy.deepcopy(self.model)
            fake_quantize_model(mixed, bits)
            budget = write_file(mixed, self.path / "mixed-size", [])
            shutil.rmtree(self.path / "mixed-size")
            table = read_table(self.path / "sensitivity.json")
            errors = {(row.layer, row.bits): row.mse for row in table.rows}
            write_json(file, {"tail": fill_tail(self.model, tail_first(self.layers, errors), budget)})

        self.workspace.step("tail", {"made": self._made("recipe")}, [file.name], work)
        return list(read_json(file)["tail"])

    def _recipe(self) -> dict[str, int]:
        ours, table = self.workspace, self.path / "sensitivity.json"
        file = self.path / "recipe.json"

        def measure() -> None:
            ours.analyze(self._analysis)

        def work() -> None:
            write_recipe(file, assign(read_table(table), self.settings.bits, Strategy.OPTIMAL))

        ours.step("analyze", {"analysis": self._analysis, "data": self.config.data}, [table.name], measure)
        ours.step("recipe", {"bits": self.settings.bits, "made": self._made("analyze")}, [file.name], work)
        return dict(read_recipe(file).bits)

    def _bits(self, arm: Arm) -> tuple[dict[str, int], str]:
        """Of every layer that is quantized, and the step that decided them."""
        if arm.mixed:
            return self._recipe(), "recipe"
        return ternary_bits(self.layers, self.tail()), "tail"

    def _start(self, arm: Arm) -> str:
        """The untrained student; returns the step that made it."""
        bits, decided = self._bits(arm)
        job = CalibrationJob(None, self.config.calibration, "cpu")
        made_by: dict[str, Any] = job.provenance(MODEL) if arm.calibrated else {"scale_init": "exact"}
        name, folder = f"start-{arm.start}", f"starts/{arm.start}"

        def work() -> None:
            student, ours = copy.deepcopy(self.model), self.workspace
            if arm.calibrated:
                put_rounded(student, job.run(ours.pipeline, MODEL, bits, ours.progress).layers)
            else:
                fake_quantize_model(student, bits)
            save_student(self.path / folder, student, identity(student, made_by, "", 1))

        self.workspace.step(name, {**made_by, "made": self._made(decided)}, [folder], work)
        return name

    def _trained(self, arm: Arm, seed: int) -> str:
        """Stage I from its start; returns the step that made it."""
        begun, settings, ours = self._start(arm), self.settings, self.workspace
        config = TrainingConfig(
            stage=1,
            train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler="cosine",
            max_train_steps=settings.steps,
            timesteps=TimeStepConfig(kind="uniform"),
            checkpointing_steps=50,
            checkpoints_total_limit=1,
            seed=seed,
            device="cpu",
        )
        name, label = _label(arm.name, seed), _label(arm.title, seed)
        folder = f"trained/{name}"

        def report(done: int, total: int, values: dict[str, float]) -> None:
            ours.progress.update(f"train {label}", done, total, f"loss {values['loss']:.4f}")

        def work() -> None:
            student = load_student(self.path / f"starts/{arm.start}")
            train(student, self.model, ours.pipeline, ours.data, config, self.path / folder, report)

        inputs = {"training": config.deciding(1), "data": self.config.data, "made": self._made(begun)}
        ours.step(f"train-{name}", inputs, [folder], work)
        return f"train-{name}"

    def _measure(self, step: str, inputs: dict[str, Any], folder: str, write: Callable[[Path], int]) -> None:
        """A step that writes a model's file, notes its bytes and lets it go."""

        def work() -> None:
            out = self.path / folder
            shutil.rmtree(out, ignore_errors=True)
            size = write(out)
            shutil.rmtree(out, ignore_errors=True)
            write_json(self.path / f"{folder}.json", {"bytes": size})

        self.workspace.step(step, inputs, [f"{folder}.json"], work)

    def _score(self, name: str, seed: int | None, load: Callable[[], Any], made: dict[str, Any]) -> RungScores:
        step, folder = f"score-{_label(name, seed)}", f"scores/{_label(name, seed)}"
        inputs: dict[str, Any] = {"scores": SCHEMA_VERSION, "evaluation": self.config.evaluation, **made}
        reference = None
        if name != FULL_PRECISION:
            reference = self.path / f"scores/{FULL_PRECISION}"
            inputs["reference"] = self._made(f"score-{FULL_PRECISION}")

        def work() -> None:
            self.scoring.score(step, name, seed, load(), self.path / folder, reference)

        self.workspace.step(step, inputs, [folder], work)
        return RungScores.load(self.path / folder)

    def _made(self, step: str) -> dict[str, str]:
        return dict(self.workspace.folder.made(step))


def order(settings: Settings) -> list[tuple[Arm | Peer, int | None]]:
    """What is made, what tells most first: untrained ones, then seed after seed the trained ones, then the peers."""
    found: list[tuple[Arm | Peer, int | None]] = [(arm, None) for arm in ARMS if not arm.trained]
    trained = [arm for arm in ARMS if arm.trained]
    found += [(arm, seed) for seed in settings.seeds for arm in trained if arm.calibrated]
    found += [(peer, None) for peer in PEERS if peer.installed]
    return found + [(arm, seed) for seed in settings.seeds for arm in trained if not arm.calibrated]


def _label(name: str, seed: int | None) -> str:
    return name if seed is None else f"{name}-seed{seed}"
