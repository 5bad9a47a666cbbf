"""`bitsfusion demo` and `bitsfusion run`: the whole method in one run folder."""

from __future__ import annotations

from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from bitsfusion.cli.console import print_json, print_ladder, progress_bars
from bitsfusion.cli.interruption import resumable
from bitsfusion.cli.options import ConfigDevice, Json, Quiet
from bitsfusion.cli.training_plan import Gpu, PlannedGpu, PlannedGpus, print_planned
from bitsfusion.embedded import MODELS
from bitsfusion.io.schema import parse
from bitsfusion.io.texts import read_json
from bitsfusion.runs.config import RunConfig, read_config
from bitsfusion.runs.run import STEPS, Run
from bitsfusion.training.plan import MACHINES


class World(str, Enum):
    """The drawn worlds."""

    QUICK = "quick"
    GRID = "grid"


Until = Annotated[str, typer.Option(help=f"Last step to run: {', '.join(STEPS)}.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved config and what training will cost, and stop.")
]


def demo(
    out: Annotated[Path, typer.Option(help="Run folder. The same command resumes it.")] = Path("runs/demo"),
    until: Until = STEPS[-1],
    world: Annotated[
        World, typer.Option(help="Embedded model to use: quick, or grid, which is harder and tells methods apart.")
    ] = World.QUICK,
    device: ConfigDevice = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Runs the whole method on a tiny model that ships with the package, in minutes."""
    preset = resources.files("bitsfusion.runs") / "presets" / "demo.yaml"
    values = yaml.safe_load(preset.read_text(encoding="utf-8"))
    named = {model.world_name: name for name, model in reversed(list(MODELS.items()))}
    config = parse(RunConfig, {**values, "model": named[world.value]}, "demo.yaml")
    execute(on_device(config, device), out, until, quiet, json)
    if until == STEPS[-1] and not json:
        print(f"a page that draws with it: bitsfusion export {out / 'packed'} --to web --out {out / 'web'}")


def run(
    config: Annotated[Path, typer.Argument(help="YAML file; examples are in configs/.")],
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/ and the config's name")] = None,
    until: Until = STEPS[-1],
    dry_run: DryRun = False,
    gpu: PlannedGpu = Gpu.A100,
    gpus: PlannedGpus = None,
    device: ConfigDevice = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Runs the whole method on your own pipeline, as a YAML file describes it."""
    resolved = on_device(read_config(config), device)
    if dry_run:
        print_planned(resolved, MACHINES[gpu.value], gpus, json)
        return
    execute(resolved, out or Path("runs") / config.stem, until, quiet, json)


def on_device(config: RunConfig, device: str | None) -> RunConfig:
    """`config` with the device of --device, where one is given."""
    return config if device is None else parse(RunConfig, {**config.model_dump(), "device": device}, "--device")


def execute(config: RunConfig, out: Path, until: str, quiet: bool, json: bool) -> None:
    """Runs `config` in folder `out` up to a step and prints the result."""
    with progress_bars(quiet) as progress, resumable():
        Run(config, out, progress).execute(until)
    if until != STEPS[-1]:
        return
    summary: dict[str, Any] = read_json(out / "summary.json")
    if json:
        print_json(summary)
    else:
        print_ladder(summary, out)
