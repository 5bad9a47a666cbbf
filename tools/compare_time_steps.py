"""Beta(3, 1), uniform and measured time steps on the embedded model: the same recipe, seeds and number of steps.

    python tools/compare_time_steps.py --out runs/time_steps [--steps 400] [--seeds 0 1 2] [--per-task 50]

Each sampler is one run folder, continued where it is there. `measured` draws by the untrained student's curve
(Eq. 9), which the Beta run measures. The table has each rung's means over the seeds.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from bitsfusion.cli.console import print_table, progress_bars
from bitsfusion.io.schema import parse
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.run import Run

FIGURES = ("clip_score", "image_mse", "noise_error", "noise_loss")


def config(kind: str, curve: Path | None, chosen: argparse.Namespace) -> RunConfig:
    """The run of one sampler; Stage II is as long as half of Stage I and draws alike."""
    timesteps = {"kind": kind, **({"curve": str(curve)} if curve else {})}
    common = {"train_batch_size": 64, "lr_scheduler": "cosine", "ema_decay": 0.99, "timesteps": timesteps}
    values: dict[str, Any] = {
        "model": "embedded",
        "data": {"kind": "world", "pool": 4096},
        "stage1": {"stage": 1, "learning_rate": 3e-4, "max_train_steps": chosen.steps, **common},
        "stage2": {"stage": 2, "learning_rate": 1e-4, "max_train_steps": max(1, chosen.steps // 2), **common},
        "seeds": chosen.seeds,
        "evaluation": {"per_task": chosen.per_task, "batch_size": 50},
    }
    return parse(RunConfig, values, kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/time_steps"))
    parser.add_argument("--steps", type=int, default=400, help="of Stage I; Stage II has half of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--per-task", type=int, default=50, help="images of each of the six tasks")
    chosen = parser.parse_args()
    curve = chosen.out / "curve.json"
    rows: list[list[str]] = []
    for kind in ("beta", "uniform", "measured"):
        folder = chosen.out / kind
        beta = chosen.out / "beta"
        if kind != "beta" and not folder.exists():  # the same analysis and recipe
            (folder / "steps").mkdir(parents=True)
            for name in ("sensitivity.json", "recipe.json", "steps/analyze.json", "steps/assign.json"):
                shutil.copy2(beta / name, folder / name)
        with progress_bars(quiet=False) as progress:
            Run(config(kind, curve if kind == "measured" else None, chosen), folder, progress).execute()
        if kind == "beta":
            curves = read_json(folder / "time_steps.json")
            write_json(curve, {**curves, "latent_error": {"init": curves["latent_error"]["init"]}})
        for rung in read_json(folder / "summary.json")["rungs"]:
            score = rung["geneval"] or {}
            figures = [score.get("overall"), *(rung[name] for name in FIGURES)]
            rows.append([f"{kind}, {rung['name']}", *("" if value is None else f"{value:.4f}" for value in figures)])
    print_table(["time steps, rung", "GenEval", *FIGURES], rows)


if __name__ == "__main__":
    main()
