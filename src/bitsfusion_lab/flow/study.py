"""The flow model's arms: how each is made, written and scored."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from bitsfusion.evaluation.rungs import RungScores
from bitsfusion.io.schema import Checked, parse
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.recipe.assign import Strategy, assign
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.config import RunConfig
from bitsfusion.sensitivity.settings import JacobianSettings
from bitsfusion.sensitivity.table import read_table
from bitsfusion.training.checkpoint import load_student
from bitsfusion.training.config import TimeStepConfig, TrainingConfig
from bitsfusion_lab.flow.peers import PEERS, Peer, apply_peer
from bitsfusion_lab.flow.tail import fill_tail, round_tail, tail_first, ternary_bits, write_file
from bitsfusion_lab.study import FULL_PRECISION, Study

MODEL = "embedded:flow"
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


class FlowStudy(Study):
    """Every arm's models; each one's file is written, weighed and let go."""

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
        super().__init__(parse(RunConfig, values, "flow"), out, progress)

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

        inputs = {"made": self.made(made)}
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

        self.step("tail", {"made": self.made("recipe")}, [file.name], work)
        return list(read_json(file)["tail"])

    def _recipe(self) -> dict[str, int]:
        settings = JacobianSettings(samples=self.settings.analysis_samples, guidance=self.config.evaluation.guidance)
        bits = self.settings.bits
        self.analyze("analyze", settings)
        recipe = self.assign(
            "recipe", {"bits": bits}, "recipe.json", lambda table: assign(table, bits, Strategy.OPTIMAL)
        )
        return dict(recipe.bits)

    def _bits(self, arm: Arm) -> tuple[dict[str, int], str]:
        """Of every layer that is quantized, and the step that decided them."""
        if arm.mixed:
            return self._recipe(), "recipe"
        return ternary_bits(self.layers, self.tail()), "tail"

    def _start(self, arm: Arm) -> str:
        """The untrained student; returns the step that made it."""
        bits, decided = self._bits(arm)
        start = CalibrationJob(None, self.config.calibration, "cpu") if arm.calibrated else ScaleInit.EXACT
        name = f"start-{arm.start}"
        self.start(name, {"made": self.made(decided)}, f"starts/{arm.start}", bits, start)
        return name

    def _trained(self, arm: Arm, seed: int) -> str:
        """Stage I from its start; returns the step that made it."""
        begun, settings, name = self._start(arm), self.settings, _label(arm.name, seed)
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
        self.train(f"train-{name}", begun, f"starts/{arm.start}", f"trained/{name}", config)
        return f"train-{name}"

    def _measure(self, step: str, inputs: dict[str, Any], folder: str, write: Callable[[Path], int]) -> None:
        """A step that writes a model's file, notes its bytes and lets it go."""

        def work() -> None:
            out = self.path / folder
            shutil.rmtree(out, ignore_errors=True)
            size = write(out)
            shutil.rmtree(out, ignore_errors=True)
            write_json(self.path / f"{folder}.json", {"bytes": size})

        self.step(step, inputs, [f"{folder}.json"], work)

    def _score(self, name: str, seed: int | None, load: Callable[[], Any], made: dict[str, Any]) -> RungScores:
        reference, inputs = None, made
        if name != FULL_PRECISION:
            reference, inputs = f"scores/{FULL_PRECISION}", made | {"reference": self.made(f"score-{FULL_PRECISION}")}
        return self.score(f"scores/{_label(name, seed)}", name, seed, load, inputs, reference)


def order(settings: Settings) -> list[tuple[Arm | Peer, int | None]]:
    """What is made, what tells most first: untrained ones, then seed after seed the trained ones, then the peers."""
    found: list[tuple[Arm | Peer, int | None]] = [(arm, None) for arm in ARMS if not arm.trained]
    trained = [arm for arm in ARMS if arm.trained]
    found += [(arm, seed) for seed in settings.seeds for arm in trained if arm.calibrated]
    found += [(peer, None) for peer in PEERS if peer.installed]
    return found + [(arm, seed) for seed in settings.seeds for arm in trained if not arm.calibrated]


def _label(name: str, seed: int | None) -> str:
    return name if seed is None else f"{name}-seed{seed}"
