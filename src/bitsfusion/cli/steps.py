"""`bitsfusion init`, `train`, `pack`: the steps alone, on files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.cli import analysis
from bitsfusion.cli.console import print_json
from bitsfusion.cli.options import Cover, Json, Model, Quiet, samplers_to_cover
from bitsfusion.cli.run import execute
from bitsfusion.models.pipeline import EMBEDDED
from bitsfusion.numerics import ScaleInit
from bitsfusion.runs.config import read_config
from bitsfusion.runs.singles import init_model, pack_checkpoint


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    analysis.register(app)
    for command in (init, train, pack):
        app.command()(command)


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
