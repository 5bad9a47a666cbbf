"""Calibrated starts against plain ones: untrained, and after some steps of Stage I.

    python tools/calibrated_starts.py --out runs/calibrated --bits 1.99 1.8 uniform:1
    python tools/calibrated_starts.py --out runs/calibrated --bits 1.99 --starts calibrated exact \
        --steps 0 40 80 160 400 --seeds 0 1 2
    python tools/calibrated_starts.py --out runs/grid --model embedded:grid --bits 2.5 2.2 1.99 1.8

Recipes are made by the Jacobian analysis (or --analyses calibrated) and the optimal strategy; uniform:N is N bits in
every layer that a recipe names. Each number of steps is a training of its own, its learning rate decaying to zero.
Every step is done once: after a kill the same command continues, and another command in the same folder shares what is
there. OUT/starts.md has all models that this command asked for. Settings are chosen with --split validation and
reported on test prompts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from calibration_parts import NOTHING, PARTS, settings_without, without

from bitsfusion.evaluation.estimates import Verdict, estimate, verdicts
from bitsfusion.evaluation.rungs import RungScores, known_mean, paired_difference
from bitsfusion.io.schema import parse
from bitsfusion.io.texts import write_text
from bitsfusion.numerics import ScaleInit
from bitsfusion.recipe.assign import Strategy, assign
from bitsfusion.recipe.named import recipe_bits
from bitsfusion.recipe.schema import Recipe
from bitsfusion.runs.calibration import CALIBRATED, CalibrationJob
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.prompts import prompts_of
from bitsfusion.runs.students import Start
from bitsfusion.sensitivity.settings import CalibratedSettings, JacobianSettings
from bitsfusion.sensitivity.table import SensitivityTable
from bitsfusion.training.checkpoint import load_student
from bitsfusion.training.config import TrainingConfig
from bitsfusion_lab.study import FULL_PRECISION, Study


@dataclass(frozen=True)
class Arm:
    """One model: its bits (an average, or uniform:N), its start, and how long it is trained with which seed."""

    bits: str
    start: str
    steps: int
    seed: int | None
    analysis: str = "jacobian"
    without: str = NOTHING

    @property
    def start_name(self) -> str:
        """The folder of what training starts from."""
        by = "" if self.analysis == "jacobian" else f"-by-{self.analysis}"
        less = "" if self.without == NOTHING else f"-without-{self.without.replace(', ', '-').replace(' ', '-')}"
        return f"{self.bits.replace(':', '')}{by}-{self.start}{less}"

    @property
    def method(self) -> str:
        """What its seeds have in common."""
        return f"{self.start_name}-{self.steps}"

    @property
    def name(self) -> str:
        """Its own folder."""
        return self.method if self.seed is None else f"{self.method}-seed{self.seed}"


class Starts(Study):
    """The models that the command asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        values: dict[str, Any] = {
            "model": options.model,
            "data": {"kind": "world", "world": "grid" if options.model.endswith("grid") else "quick", "pool": 4096},
            "calibration": json.loads(options.calibration),
            "evaluation": {"per_task": options.per_task, "split": options.split, "batch_size": 50},
        }
        super().__init__(parse(RunConfig, values, "options"), options.out)
        texts, calibration = prompts_of(options.model), self.config.calibration
        alone = CalibratedSettings(guidance=calibration.guidance, prompts=texts, calibration=calibration)
        self.analyses = {"jacobian": JacobianSettings(), "calibrated": alone}
        self.trained = options.trained
        self.rate, self.batch_size = options.learning_rate, options.batch_size
        self.suffix = options.name and f"-{options.name}"

    def bits(self, arm: Arm) -> tuple[dict[str, int], dict[str, Any]]:
        """Each layer's bits, and what they follow from."""
        if arm.bits.startswith("uniform:"):
            return recipe_bits(arm.bits, self.layers), {"recipe": arm.bits}
        by = "" if arm.analysis == "jacobian" else f"-{arm.analysis}"
        analyzed, table, name = f"analyze{by}", f"sensitivity{by}.json", f"{arm.bits}{by}"
        self.analyze(analyzed, self.analyses[arm.analysis], table)

        def make(measured: SensitivityTable) -> Recipe:
            return assign(measured, float(arm.bits), Strategy.OPTIMAL)

        recipe = self.assign(f"recipe-{name}", {"bits": arm.bits}, f"recipes/{name}.json", make, analyzed, table)
        return dict(recipe.bits), {"made": self.made(f"recipe-{name}")}

    def begun(self, arm: Arm) -> tuple[str, str]:
        """The untrained student: the step that made it, and its folder."""
        bits, follows = self.bits(arm)
        start: Start = ScaleInit(arm.start) if arm.start != CALIBRATED else self.calibration(arm)
        notes = {} if arm.without == NOTHING else {"without": arm.without}
        name = f"{arm.start_name}{self.suffix}"
        with without(arm.without):
            self.start(f"start-{name}", follows, f"starts/{name}", bits, start, **notes)
        return f"start-{name}", f"starts/{name}"

    def calibration(self, arm: Arm) -> CalibrationJob:
        """The config's, without a part where the arm leaves one out."""
        return CalibrationJob(None, settings_without(arm.without, self.config.calibration))

    def finished(self, arm: Arm) -> tuple[str, str]:
        """The same after Stage I, where the arm is trained."""
        begun, start = self.begun(arm)
        if not arm.steps:
            return begun, start
        config = TrainingConfig(
            stage=1,
            train_batch_size=self.batch_size,
            learning_rate=self.rate,
            lr_scheduler="cosine",
            max_train_steps=arm.steps,
            timesteps={"kind": "uniform"},
            ema_decay=0.99 if arm.steps >= 400 else None,
            checkpointing_steps=100,
            checkpoints_total_limit=1,
            seed=arm.seed or 0,
            trained=self.trained,
        )
        name = f"{arm.name}{self.suffix}"
        self.train(f"train-{name}", begun, start, f"trained/{name}", config)
        return f"train-{name}", f"trained/{name}"

    def scored(self, arm: Arm | None) -> RungScores:
        """Images and scores of one model; of full precision for None."""
        split, data = self.config.evaluation.split, {"data": self.config.data}
        reference = f"scores/{FULL_PRECISION}-{split}"
        if arm is None:
            return self.score(reference, FULL_PRECISION, None, lambda: self.model, data, None)
        step, folder = self.finished(arm)
        return self.score(
            f"scores/{arm.name}{self.suffix}-{split}",
            arm.method,
            arm.seed if arm.steps else None,
            lambda: load_student(self.path / folder),
            data | {"made": self.made(step)},
            reference,
        )


def arms_of(options: argparse.Namespace) -> list[Arm]:
    """All of them, seed after seed, so that every kind is there early; the untrained ones once."""
    found = [
        Arm(bits, start, steps, seed if steps else None, analysis, part)
        for seed in options.seeds
        for bits in options.bits
        for steps in options.steps
        for start in options.starts
        for analysis in options.analyses
        for part in options.without
    ]
    return list(dict.fromkeys(found))


def markdown(scores: list[RungScores], original: RungScores) -> str:
    """A method a row, its seeds together, against full precision."""
    methods: dict[str, list[RungScores]] = {}
    for score in scores:
        methods.setdefault(score.name, []).append(score)
    changes = [paired_difference(found, [original]) for found in methods.values()]
    known = [change for change in changes if change is not None]
    shown = iter(verdicts(known))
    lines = [
        "| model | seeds | GenEval (95 %) | against full precision | verdict | image MSE | noise error | noise loss |",
        "|---|---|---|---|---|---|---|---|",
        _row(FULL_PRECISION, [original], "–", "–"),
    ]
    for (name, found), change in zip(methods.items(), changes, strict=True):
        verdict = Verdict.NONE if change is None else next(shown)
        less = "–" if change is None else f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
        lines.append(_row(name, found, less, "–" if change is None else verdict.value))
    return "\n".join(lines) + "\n"


def _row(name: str, scores: list[RungScores], less: str, verdict: str) -> str:
    right = estimate(np.mean([np.asarray(score.passed, dtype=float) for score in scores], axis=0))
    each = "" if len(scores) < 2 else " [" + ", ".join(f"{np.mean(score.passed or [0]):.3f}" for score in scores) + "]"
    means = [np.mean([getattr(score, key) for score in scores]) for key in ("noise_error", "noise_loss")]
    mse = known_mean([score.image_mse for score in scores])
    cells = [
        name,
        str(len(scores)),
        f"{right.mean:.3f}{each} ({right.low:.3f} to {right.high:.3f})",
        less,
        verdict,
        "–" if mse is None else f"{mse:.4f}",
        *(f"{mean:.5f}" for mean in means),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=("embedded", "embedded:grid"), default="embedded")
    parser.add_argument("--bits", nargs="+", default=["1.99", "1.8", "uniform:1"])
    parser.add_argument("--starts", nargs="+", choices=(CALIBRATED, "exact", "minmax"), default=[CALIBRATED])
    parser.add_argument("--steps", type=int, nargs="+", default=[0], help="of Stage I")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    parser.add_argument("--analyses", nargs="+", choices=("jacobian", "calibrated"), default=["jacobian"])
    parser.add_argument("--without", nargs="+", choices=PARTS, default=[NOTHING], help="parts of the calibration")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--trained", choices=("all", "light"), default="all", help="light: no weights")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--per-task", type=int, default=100)
    parser.add_argument("--calibration", default="{}", help='settings other than the defaults, as JSON: {"sweeps": 4}')
    parser.add_argument("--name", default="", help="of the variant that other settings make")
    options = parser.parse_args()
    starts = Starts(options)
    try:
        original, scores = starts.scored(None), []
        for arm in arms_of(options):
            scores.append(starts.scored(arm))
            write_text(options.out / f"starts{starts.suffix}.md", markdown(scores, original))
            print(arm.name, f"{np.mean(scores[-1].passed or [0]):.3f}", flush=True)
    finally:
        starts.close()
    print(markdown(scores, original))


if __name__ == "__main__":
    main()
