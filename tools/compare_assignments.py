"""Recipes after the same training: strategies, average bits, eta (Table 5) and ways to measure sensitivity.

python tools/compare_assignments.py --out runs/compare                          # everything; hours
python tools/compare_assignments.py --out runs/compare --only strategies        # paper and optimal at each --bits
python tools/compare_assignments.py --out runs/compare --only etas --until init # no training
python tools/compare_assignments.py --out /tmp/try --only methods --steps 20 --per-task 5

Each arm is a run folder under OUT/arms; killed, the same command continues. The table so far is OUT/comparison.md.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitsfusion.errors import InputError
from bitsfusion.evaluation.rungs import geneval, means, paired_difference
from bitsfusion.io.texts import write_json, write_text
from bitsfusion.recipe.assign import ETA, Strategy
from bitsfusion.runs.config import PaperAnalysis, RecipeSection, RunConfig, read_config
from bitsfusion.runs.run import Run
from bitsfusion.sensitivity.settings import JacobianSettings, NoiseErrorSettings

ROOT = Path(__file__).parents[1]
TARGET = 1.99
SHARED = {"analyze": "sensitivity.json", "score-full_precision": "rungs/full_precision"}
"""Steps that arms have in common, and what they make."""


@dataclass(frozen=True)
class Arm:
    """One recipe to train: how sensitivity was measured, the strategy, the target and eta."""

    method: str
    strategy: Strategy
    bits: float
    eta: float = ETA

    @property
    def name(self) -> str:
        """The folder's name."""
        eta = f"-eta{self.eta:g}" if self.strategy is Strategy.PAPER else ""
        return f"{self.method}-{self.strategy.value}-{self.bits:g}{eta}"


def arms(only: str, bits: list[float], etas: list[float], methods: list[str]) -> list[Arm]:
    """Those asked for, each once: what several comparisons need is trained once."""
    first = methods[0]
    strategies = [Arm(first, strategy, target) for target in bits for strategy in (Strategy.PAPER, Strategy.OPTIMAL)]
    swept = [Arm(first, Strategy.PAPER, TARGET, eta) for eta in etas]
    measured = [Arm(method, Strategy.OPTIMAL, TARGET) for method in methods]
    groups = {"strategies": strategies, "etas": swept, "methods": measured}
    chosen = groups.values() if only == "all" else [groups[only]]
    return list(dict.fromkeys(arm for group in chosen for arm in group))


def config_of(arm: Arm, base: RunConfig) -> RunConfig:
    """`base` with the arm's analysis and recipe."""
    analysis: Any = {
        "paper": base.analysis if isinstance(base.analysis, PaperAnalysis) else None,
        "noise_error": NoiseErrorSettings(),
        "jacobian": JacobianSettings(),
    }[arm.method]
    if analysis is None:
        raise SystemExit("the config has no analysis of the paper's method")
    recipe = RecipeSection(target_bits=arm.bits, strategy=arm.strategy, eta=arm.eta)
    return base.model_copy(update={"analysis": analysis, "recipe": recipe, "control": False})


def share(steps: list[str], source: Path, target: Path) -> None:
    """Copies finished steps; the target run checks whether they are of its own inputs."""
    for step in steps:
        record, made = source / "steps" / f"{step}.json", source / SHARED[step]
        if not record.exists() or (target / "steps" / record.name).exists():
            continue
        copy = target / SHARED[step]
        copy.parent.mkdir(parents=True, exist_ok=True)
        if made.is_dir():
            shutil.copytree(made, copy, dirs_exist_ok=True)
        else:
            shutil.copyfile(made, copy)
        (target / "steps").mkdir(exist_ok=True)
        shutil.copyfile(record, target / "steps" / record.name)


def train_and_score(arm: Arm, config: RunConfig, folder: Path, until: str) -> list[dict[str, Any]]:
    """One row for each rung up to `until`."""
    run = Run(config, folder)
    try:
        stages = ["init", "stage1", "stage2"][: ["init", "stage1", "stage2"].index(until) + 1]
        for step in ("analyze", "assign", *stages):
            getattr(run, step)()
        run.ladder.models = [model for model in run.ladder.models if model.name in ("full_precision", *stages)]
        if until == "stage2":
            run.pack()
        run.ladder.score_all()
        recipe, reference = run.workspace.recipe(), run.ladder.scores("full_precision")
        rows = []
        for stage in stages:
            scores = run.ladder.scores(stage)
            overall, change = geneval(scores, run.ladder.prompts), paired_difference(scores, reference)
            rows.append(
                {
                    "method": arm.method,
                    "strategy": arm.strategy.value,
                    "target_bits": arm.bits,
                    "eta": arm.eta if arm.strategy is Strategy.PAPER else None,
                    "average_bits": recipe.average_bits,
                    "rung": stage,
                    "seeds": [score.seed for score in scores],
                    "geneval": None if overall is None else overall.overall,
                    "against_full_precision": None if change is None else asdict(change),
                    **means(scores),
                }
            )
        return rows
    finally:
        run.workspace.close()


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a rung."""
    lines = [
        "| sensitivity | strategy | target | eta | bits | rung | GenEval | against FP (95 %) | CLIP score | image MSE "
        "| teacher error | noise loss |",
        "|" + "---|" * 12,
    ]
    for row in rows:
        less = row["against_full_precision"]
        cells = [
            row["method"],
            row["strategy"],
            f"{row['target_bits']:g}",
            "–" if row["eta"] is None else f"{row['eta']:g}",
            f"{row['average_bits']:.4f}",
            row["rung"],
            "–" if row["geneval"] is None else f"{row['geneval']:.3f}",
            "–" if less is None else f"{less['mean']:+.3f} ({less['low']:+.3f} to {less['high']:+.3f})",
            *("–" if row[key] is None else f"{row[key]:.4f}" for key in ("clip_score", "image_mse")),
            *(f"{row[key]:.5f}" for key in ("noise_error", "noise_loss")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "embedded_full.yaml")
    parser.add_argument("--only", choices=("all", "strategies", "etas", "methods"), default="all")
    parser.add_argument("--bits", type=float, nargs="+", default=[1.6, 1.8, 1.99, 2.3, 3.0])
    parser.add_argument("--etas", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument(
        "--methods", nargs="+", default=["paper", "noise_error", "jacobian"], help="the first is the rule"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--until", choices=("init", "stage1", "stage2"), default="stage1")
    parser.add_argument("--steps", type=int, help="of Stage I, instead of the config's")
    parser.add_argument("--per-task", type=int, help="prompts of each task, instead of the config's")
    parser.add_argument("--reuse", type=Path, help="a run of the same config, whose analysis and scores are taken over")
    options = parser.parse_args()

    base = read_config(options.config).model_copy(update={"seeds": tuple(options.seeds)})
    if options.steps:
        base = base.model_copy(update={"stage1": base.stage1.model_copy(update={"max_train_steps": options.steps})})
    if options.per_task:
        base = base.model_copy(update={"evaluation": base.evaluation.model_copy(update={"per_task": options.per_task})})
    chosen = arms(options.only, options.bits, options.etas, options.methods)
    rows: list[dict[str, Any]] = []
    unreachable: dict[str, str] = {}
    done: dict[str, Path] = {}
    for number, arm in enumerate(chosen, start=1):
        folder, started = options.out / "arms" / arm.name, time.monotonic()
        if options.reuse:
            share(list(SHARED), options.reuse, folder)
        for method, other in done.items():
            share(list(SHARED) if method == arm.method else ["score-full_precision"], other, folder)
        try:
            rows += train_and_score(arm, config_of(arm, base), folder, options.until)
            done[arm.method] = folder
        except InputError as error:  # the paper's bonuses for sensitive layers leave no way below a certain average
            if not str(error).startswith("target: "):
                raise
            unreachable[arm.name] = str(error)
            done.setdefault(arm.method, folder)
        write_json(options.out / "comparison.json", {"schema_version": 1, "rows": rows, "unreachable": unreachable})
        write_text(options.out / "comparison.md", markdown(rows))
        print(f"{number} of {len(chosen)}  {arm.name:<32} {time.monotonic() - started:6.0f} s", flush=True)
    print(markdown(rows))
    for name, reason in unreachable.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
