"""`bitsfusion train` and `timesteps`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitsfusion.cli.console import print_json, print_table, progress_bars
from bitsfusion.cli.interruption import resumable
from bitsfusion.cli.options import CaptionedData, ConfigDevice, Device, Json, Model, Quiet
from bitsfusion.cli.run import execute
from bitsfusion.cli.training_plan import Gpu, PlannedGpu, PlannedGpus, print_planned
from bitsfusion.devices import AUTO, resolve
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.report.time_steps import draw_time_steps
from bitsfusion.runs.config import named_data, own_data
from bitsfusion.runs.sources import training_data
from bitsfusion.runs.stage import StageConfig, read_training_config, train_stage
from bitsfusion.runs.time_steps import measure_time_steps
from bitsfusion.training.plan import MACHINES
from bitsfusion.training.ranks import Ranks


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of one stage or of a whole run; examples are in configs/.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default="runs/ and the config's name")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(help="KEY.KEY=VALUE instead of the file's value, such as training.seed=1. May be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config and what it will cost, and stop.")
    ] = False,
    gpu: PlannedGpu = Gpu.A100,
    gpus: PlannedGpus = None,
    device: ConfigDevice = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Trains one stage, or both stages of a run with the steps that they need (section 4.2).

    Under `accelerate launch` or torchrun all processes train together.
    """
    resolved = read_training_config(config, set, device)
    if dry_run:
        print_planned(resolved, MACHINES[gpu.value], gpus, json)
        return
    out = out or Path("runs") / config.stem
    training = resolved.training if isinstance(resolved, StageConfig) else resolved
    ranks = Ranks(resolve(training.device))
    quiet = quiet or not ranks.main
    if not isinstance(resolved, StageConfig):
        execute(resolved, out, "stage2", quiet, json=False)
        return
    with progress_bars(quiet) as progress, resumable():
        result = train_stage(resolved, out, progress)
    if not ranks.main:
        return
    if json:
        print_json({"folder": str(out), "steps": result.steps, "loss": result.loss, "seconds": result.seconds})
    else:
        print(f"{out}: {result.steps} steps, loss {result.loss:.5f}, {result.seconds:.0f} s")


def timesteps(
    model: Model,
    quantized: Annotated[
        Path, typer.Argument(help="Folder of a finished training stage, a checkpoint, or a packed folder.")
    ],
    out: Annotated[Path, typer.Option(help="JSON file to write the curve to; its plot goes beside it as .png.")] = Path(
        "time_steps.json"
    ),
    data: CaptionedData = None,
    resolution: Annotated[int, typer.Option(help="Pixels of the square images.")] = 512,
    points: Annotated[int, typer.Option(min=2, help="Time steps to measure at.")] = 20,
    samples: Annotated[int, typer.Option(min=1, help="Noisy latents at each time step.")] = 32,
    alpha: Annotated[float, typer.Option(help="Alpha of the Beta distribution in the plot.")] = 3.0,
    beta: Annotated[float, typer.Option(help="Beta of the same.")] = 1.0,
    device: Device = AUTO,
    json: Json = False,
) -> None:
    """Measures the error of a quantized model at each time step (Eq. 9, figure 4)."""
    source = own_data(model, pool=1024) if data is None else named_data(data, resolution=resolution)
    pipeline = load_pipeline(model)
    held_out = training_data(source, pipeline, "validation", device=resolve(device))
    curve = measure_time_steps(pipeline, quantized, held_out, out, points, samples, device)
    picture = out.with_suffix(".png")
    draw_time_steps(curve, picture, alpha, beta, pipeline.scheduler.config.num_train_timesteps)
    if json:
        print_json({"curve": curve, "file": str(out), "picture": str(picture)})
    else:
        print_table(["t", "latent error"], [[str(step), f"{error:.3g}"] for step, error in curve])
        print(f"{out}, {picture}")
