"""`bitsfusion analyze` and `assign`: from a model to its sensitivity, and from that to a recipe."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.cli.console import print_json, progress_bars
from bitsfusion.cli.interruption import resumable
from bitsfusion.cli.options import CaptionedData, Covered, Device, Json, Model, Quiet, time_cover
from bitsfusion.devices import AUTO
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.samplers import SamplerSteps
from bitsfusion.diffusion.time_features import BASIS
from bitsfusion.embedded import embedded_model, guidance_of
from bitsfusion.errors import InputError
from bitsfusion.evaluation.prompts import file_prompts, world_prompts
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.recipe.assign import Strategy
from bitsfusion.recipe.assign import assign as assign_bits
from bitsfusion.recipe.schema import write_recipe
from bitsfusion.runs.analysis import AnalysisJob
from bitsfusion.runs.config import DataSource, named_data, own_data
from bitsfusion.runs.prompts import prompts_of
from bitsfusion.sensitivity.entropy import level_entropies
from bitsfusion.sensitivity.measure import Counted
from bitsfusion.sensitivity.plan import Plan
from bitsfusion.sensitivity.report import write_report
from bitsfusion.sensitivity.settings import (
    CalibratedSettings,
    JacobianSettings,
    NoiseErrorSettings,
    PaperSettings,
    Settings,
)
from bitsfusion.sensitivity.table import read_table

DEFAULT_BITS = 1.99


class AnalysisMethod(str, Enum):
    """The ways to measure, cheapest first."""

    JACOBIAN = "jacobian"
    CALIBRATED = "calibrated"
    NOISE_ERROR = "noise_error"
    PAPER = "paper"


def analyze(
    model: Model,
    out: Annotated[Path, typer.Option(help="Sensitivity file to write.")],
    method: Annotated[
        AnalysisMethod,
        typer.Option(
            help="jacobian (seconds), calibrated (what a calibration leaves), noise_error (minutes), paper (trains and "
            "draws with each candidate)."
        ),
    ] = AnalysisMethod.JACOBIAN,
    data: CaptionedData = None,
    resolution: Annotated[int, typer.Option(help="Pixels of the square training images.")] = 512,
    samples: Annotated[
        int, typer.Option(min=1, help="Noisy latents to measure on, for the methods without training.")
    ] = 64,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts (.txt, .jsonl, .tsv) for methods paper and calibrated; paper takes K, evenly spaced."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="K, images drawn for each candidate (method paper).")] = 100,
    iterations: Annotated[int, typer.Option(min=0, help="T, training steps for each candidate (method paper).")] = 100,
    train_batch_size: Annotated[int, typer.Option(min=1, help="Samples in a training step (method paper).")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW (method paper).")] = 1e-5,
    steps: Annotated[int, typer.Option(min=1, help="Sampler steps for each image (method paper).")] = 50,
    clip: Annotated[
        str | None, typer.Option(help="Folder or hub id of a CLIP model, to measure how far the CLIP score drops.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, time steps and training.")] = 0,
    cover: Covered = ["basis"],  # noqa: B006 (typer reads it, nobody changes it)
    device: Device = AUTO,
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes, started with Ray; 0 measures in this process, without Ray.")
    ] = 0,
    ray_address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster; without it the workers run on this machine.")
    ] = None,
    cpus_per_worker: Annotated[int | None, typer.Option(min=1, help="CPU cores for each worker.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder to write tables 1 and 2 and the figures of errors and skewness to.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a small sample, print what the whole will cost, and stop.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measures how sensitive each layer is to 1, 2 and 3 bits (section 3.2). If killed, run the same command again."""
    settings: Settings
    known = embedded_model(model)
    if method is AnalysisMethod.PAPER:
        if prompts is not None:
            chosen = file_prompts(prompts, 0)
        elif known:
            chosen = world_prompts(known.world, "validation", -(-images // len(known.world.tasks)), 0)
        else:
            raise InputError("prompts: got none, wanted --prompts FILE for the paper's method")
        if len(chosen.texts) < images:
            raise InputError(f"prompts: got {len(chosen.texts)} in {prompts}, wanted {images} (--images)")
        settings = PaperSettings(
            prompts=tuple(chosen.texts[place * len(chosen.texts) // images] for place in range(images)),
            iterations=iterations,
            train_batch_size=train_batch_size,
            learning_rate=learning_rate,
            steps=steps,
            seed=seed,
            guidance=guidance_of(model),
        )
    elif method is AnalysisMethod.JACOBIAN:
        settings = JacobianSettings(seed=seed, samples=samples, guidance=guidance_of(model))
    elif method is AnalysisMethod.CALIBRATED:
        guidance = guidance_of(model)
        calibration = CalibrationSettings(guidance=guidance)
        settings = CalibratedSettings(
            seed=seed, samples=samples, guidance=guidance, prompts=prompts_of(model, prompts), calibration=calibration
        )
    else:
        settings = NoiseErrorSettings(seed=seed, samples=samples)
    job = AnalysisJob(
        model=model,
        settings=settings,
        data=_source(
            model, data, resolution, iterations * train_batch_size if method is AnalysisMethod.PAPER else samples
        ),
        samplers=_counted(cover),
        clip=clip or (str(known.scorer) if known else None),
        device=device,
    )
    if dry_run:
        _print_plan(job.plan(out), max(1, workers), json)
        return
    measuring = job.workers(workers, ray_address, cpus_per_worker) if workers or ray_address else None
    with progress_bars(quiet) as progress, resumable():
        table = job.run(out, measuring, progress.step("analyze"))
    written = [] if report is None else write_report(table, pipeline_denoiser(load_pipeline(model)), report)
    if json:
        files = [str(file) for file in written]
        print_json({"file": str(out), "rows": len(table.rows), "layers": len(table.layers), "report": files})
        return
    print(f"{out}: {len(table.rows)} rows of {len(table.layers)} layers")
    for file in written:
        print(file)


def _source(model: str, data: str | None, resolution: int, samples: int) -> DataSource:
    if data is not None:  # no more images are encoded than the method looks at
        return named_data(data, resolution=resolution, max_samples=max(1, samples))
    return own_data(model)


def _counted(cover: list[str]) -> Counted:
    covered = time_cover(cover)
    if covered is None or covered == BASIS:
        return BASIS if covered else None
    return tuple((each.name, each.steps) for each in covered if isinstance(each, SamplerSteps))


def _print_plan(plan: Plan, workers: int, json: bool) -> None:
    if json:
        print_json({**asdict(plan), "workers": workers, "hours": plan.hours(workers)})
        return
    print(f"method             {plan.method}")
    print(f"candidates         {plan.candidates:,}, of which {plan.done:,} are measured")
    print(f"forward passes     {plan.forwards * plan.left:,.0f} ({plan.forwards:,.1f} latents a candidate)")
    print(f"training samples   {plan.training_samples * plan.left:,.0f} ({plan.training_samples:,.1f} a candidate)")
    print(f"a candidate        {plan.candidate_seconds:,.3g} s, and {plan.shared_seconds:,.3g} s once a worker")
    print(
        f"in all             {plan.hours(workers):,.3g} hours with {workers} worker{'s' * (workers > 1)} like this one"
    )
    print(plan.assumption)


def assign(
    sensitivity: Annotated[Path, typer.Argument(help="Sensitivity file written by `bitsfusion analyze`.")],
    out: Annotated[Path, typer.Option(help="Recipe file to write.")],
    bits: Annotated[
        float | None,
        typer.Option(help="Average bits per weight by Appendix H, time features included.", show_default="1.99"),
    ] = None,
    true_bits: Annotated[
        float | None,
        typer.Option(help="Instead of --bits: average bits per weight on disk, by the entropy of the levels."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With --true-bits: the model to take entropies from, if not the sensitivity file's."),
    ] = None,
    strategy: Annotated[
        Strategy, typer.Option(help="paper: its threshold on scores; optimal: the least total error.")
    ] = Strategy.OPTIMAL,
    eta: Annotated[float, typer.Option(help="Exponent of the layer size (strategy paper).")] = 0.3,
    quiet: Quiet = False,
) -> None:
    """Assigns bits to each layer from its sensitivity (section 3.3)."""
    table = read_table(sensitivity)
    if true_bits is None:
        recipe = assign_bits(table, DEFAULT_BITS if bits is None else bits, strategy, eta=eta)
        shown = f"{recipe.average_bits:.4f} bits on average"
    else:
        if bits is not None:
            raise InputError("true-bits: got --bits too, wanted one of the two")
        unet = pipeline_denoiser(load_pipeline(model or table.model))
        with progress_bars(quiet) as progress:
            entropies = level_entropies(unet, progress=progress.step("entropies"))
        recipe = assign_bits(table, true_bits, strategy, eta=eta, entropies=entropies)
        shown = f"{recipe.provenance['true_bits']:.4f} true bits on average, {recipe.average_bits:.4f} by Appendix H"
    write_recipe(out, recipe)
    print(f"{out}: {shown}")
