"""`bitsfusion analyze` and `assign`: from a model to its sensitivity, and from that to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitsfusion.cli.console import progress_bars
from bitsfusion.cli.options import Cover, Model, Quiet, samplers_to_cover
from bitsfusion.errors import InputError
from bitsfusion.evaluation.prompts import file_prompts, world_prompts
from bitsfusion.files import sha256_folder
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.models.pipeline import EMBEDDED, load_pipeline, pipeline_folder
from bitsfusion.recipe.assign import Strategy
from bitsfusion.recipe.assign import assign as assign_bits
from bitsfusion.recipe.schema import write_recipe
from bitsfusion.runs.config import FolderSource, RunConfig, WorldSource
from bitsfusion.runs.sources import training_data
from bitsfusion.sensitivity.measure import analyze as measure
from bitsfusion.sensitivity.settings import NoiseErrorSettings, PaperSettings
from bitsfusion.sensitivity.table import read_table


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (analyze, assign):
        app.command()(command)


def analyze(
    model: Model,
    out: Annotated[Path, typer.Option(help="Sensitivity file to write.")],
    method: Annotated[
        str, typer.Option(help="noise_error (minutes) or paper (trains and draws with each candidate).")
    ] = "noise_error",
    data: Annotated[
        Path | None, typer.Option(help="Imagefolder of captioned images; the embedded model needs none.")
    ] = None,
    resolution: Annotated[int, typer.Option(help="Pixels of the square training images.")] = 512,
    prompts: Annotated[Path | None, typer.Option(help="Prompts of the paper's method, .txt or .jsonl.")] = None,
    images: Annotated[int, typer.Option(help="K, images for each candidate of the paper's method.")] = 100,
    iterations: Annotated[int, typer.Option(help="T, training steps for each candidate of the paper's method.")] = 100,
    clip: Annotated[str | None, typer.Option(help="CLIP model for the drop of CLIP score: a folder or hub id.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    cover: Cover = ["pndm:50"],  # noqa: B006 (typer reads it, nobody changes it)
    quiet: Quiet = False,
) -> None:
    """How much each layer suffers at 1, 2 and 3 bits (section 3.2)."""
    settings: NoiseErrorSettings | PaperSettings
    if method == "paper":
        if prompts is None and model != EMBEDDED:
            raise InputError("prompts: got none, wanted --prompts FILE for the paper's method")
        chosen = world_prompts("validation", -(-images // 6), 0) if prompts is None else file_prompts(prompts, 0)
        settings = PaperSettings(prompts=chosen.texts[:images], iterations=iterations, seed=seed)
    elif method == "noise_error":
        settings = NoiseErrorSettings(seed=seed)
    else:
        raise InputError(f"method: got {method!r}, wanted noise_error or paper")
    if data is None and model != EMBEDDED:
        raise InputError("data: got none, wanted --data FOLDER of captioned images for this model")
    source = (
        WorldSource() if data is None else FolderSource(kind="imagefolder", train_data_dir=data, resolution=resolution)
    )
    covered = samplers_to_cover(cover)
    if covered is None:
        raise InputError("cover: got any, wanted the samplers whose time features the recipe shall count")
    pipeline = load_pipeline(model)
    scorer = clip or (RunConfig().scorer if model == EMBEDDED else None)
    with progress_bars(quiet) as progress:
        table = measure(
            pipeline,
            settings,
            out,
            training_data(source, pipeline, "train"),
            model=model,
            source_sha256=sha256_folder(pipeline_folder(model)),
            samplers=[(sampler.name, sampler.steps) for sampler in covered],
            scorer=None if scorer is None else ClipScorer.from_pretrained(scorer),
            progress=lambda done, total: progress.update("analyze", done, total),
        )
    print(f"{out}: {len(table.rows)} rows of {len(table.layers)} layers")


def assign(
    sensitivity: Annotated[Path, typer.Argument(help="Sensitivity file.")],
    out: Annotated[Path, typer.Option(help="Recipe file to write.")],
    bits: Annotated[float, typer.Option(help="Average bits a weight, time features counted (Appendix H).")] = 1.99,
    strategy: Annotated[
        Strategy, typer.Option(help="The paper's threshold, or the least total error.")
    ] = Strategy.OPTIMAL,
    eta: Annotated[float, typer.Option(help="Exponent of the layer size in the paper's strategy.")] = 0.3,
) -> None:
    """Bits for each layer from its sensitivity (section 3.3)."""
    recipe = assign_bits(read_table(sensitivity), bits, strategy, eta=eta)
    write_recipe(out, recipe)
    print(f"{out}: {recipe.average_bits:.4f} bits on average")
