"""`bitsfusion analyze`, `assign`, `init`, `train`, `pack`: the steps alone, on files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.cli.console import print_json, progress_bars
from bitsfusion.cli.options import Cover, Json, Quiet, samplers_to_cover
from bitsfusion.cli.run import execute
from bitsfusion.errors import InputError
from bitsfusion.evaluation.prompts import file_prompts, world_prompts
from bitsfusion.files import sha256_folder
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.models.pipeline import EMBEDDED, load_pipeline, pipeline_folder
from bitsfusion.numerics import ScaleInit
from bitsfusion.recipe.assign import Strategy
from bitsfusion.recipe.assign import assign as assign_bits
from bitsfusion.recipe.schema import write_recipe
from bitsfusion.runs.config import FolderSource, RunConfig, WorldSource, read_config
from bitsfusion.runs.singles import init_model, pack_checkpoint
from bitsfusion.runs.sources import training_data
from bitsfusion.sensitivity.measure import analyze as measure
from bitsfusion.sensitivity.settings import NoiseErrorSettings, PaperSettings
from bitsfusion.sensitivity.table import read_table

Model = Annotated[str, typer.Argument(help='A diffusers folder, a hub id, or "embedded".')]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (analyze, assign, init, train, pack):
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


def init(
    model: Model,
    recipe: Annotated[str, typer.Option(help="Recipe file, or the published recipe sd15.")],
    out: Annotated[Path, typer.Option(help="Packed folder to write.")],
    scale_init: Annotated[ScaleInit, typer.Option(help="How scales are found.")] = ScaleInit.EXACT,
    cover: Cover = ["pndm:50"],  # noqa: B006
    json: Json = False,
) -> None:
    """Quantizes and packs without training (section 4.1)."""
    _report(init_model(model, recipe, out, scale_init, samplers_to_cover(cover)), out, json)


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/ and the config's name.")] = None,
    quiet: Quiet = False,
) -> None:
    """Stage I, then Stage II (section 4.2), with the steps before them where they are missing."""
    execute(read_config(config), out or Path("runs") / config.stem, "stage2", quiet, json=False)


def pack(
    checkpoint: Annotated[Path, typer.Argument(help="A finished stage's folder, or a checkpoint of it.")],
    out: Annotated[Path, typer.Option(help="Packed folder to write.")],
    model: Annotated[str, typer.Option(help="The pipeline it was trained from.")] = EMBEDDED,
    cover: Cover = ["pndm:50"],  # noqa: B006
    json: Json = False,
) -> None:
    """Turns a trained student into real bits."""
    _report(pack_checkpoint(checkpoint, model, out, samplers_to_cover(cover)), out, json)


def _report(config: PackedConfig, out: Path, json: bool) -> None:
    result: dict[str, Any] = {"folder": str(out), "layers": len(config.layers), "average_bits": config.average_bits}
    if json:
        print_json(result)
    else:
        print(f"{out}: {len(config.layers)} packed layers, {config.average_bits:.4f} bits on average")
