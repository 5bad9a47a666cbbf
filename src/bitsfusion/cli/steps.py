"""`bitsfusion init`, `pack`: the steps alone, on files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.cli import analysis
from bitsfusion.cli.console import print_json, progress_bars
from bitsfusion.cli.options import Json, Model, Quiet, samplers_to_cover
from bitsfusion.models.pipeline import EMBEDDED
from bitsfusion.numerics import ScaleInit
from bitsfusion.runs import packing
from bitsfusion.runs.packing import init_model, pack_checkpoint

Covered = Annotated[
    list[str],
    typer.Option(
        "--cover",
        help="Samplers whose time steps are cached, as NAME:STEPS; repeat for more. `any` keeps the time layers at "
        "8 bits, for every sampler. `auto`: pndm:50, or any where the UNet allows no cache.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    analysis.register(app)
    for command in (init, pack):
        app.command()(command)


def init(
    model: Model,
    out: Annotated[Path, typer.Option(help="Packed folder to write.")],
    recipe: Annotated[
        str | None, typer.Option(help="Recipe file, the published recipe sd15, or uniform:N for N bits everywhere.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="Instead of a recipe: average bits, spread by the weights' own errors.")
    ] = None,
    scale_init: Annotated[
        ScaleInit, typer.Option(help="How scales are found; compact: as exact, a little coarser.")
    ] = ScaleInit.COMPACT,
    cover: Covered = ["auto"],  # noqa: B006
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Quantizes and packs without training (section 4.1)."""
    with progress_bars(quiet or json) as progress:
        config = init_model(
            model, out, recipe=recipe, bits=bits, method=scale_init, samplers=_samplers(cover), progress=progress
        )
    _report(config, out, json)


def pack(
    checkpoint: Annotated[Path, typer.Argument(help="A finished stage's folder, or a checkpoint of it.")],
    out: Annotated[Path, typer.Option(help="Packed folder to write.")],
    model: Annotated[str, typer.Option(help="The pipeline it was trained from.")] = EMBEDDED,
    cover: Covered = ["auto"],  # noqa: B006
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Turns a trained student into real bits."""
    with progress_bars(quiet or json) as progress:
        config = pack_checkpoint(checkpoint, model, out, _samplers(cover), progress)
    _report(config, out, json)


def _samplers(cover: list[str]) -> packing.Cover:
    return packing.AUTO if cover == [packing.AUTO] else samplers_to_cover(cover)


def _report(config: PackedConfig, out: Path, json: bool) -> None:
    notes = config.provenance.get("notes", [])
    result: dict[str, Any] = {"folder": str(out), "layers": len(config.layers), "average_bits": config.average_bits}
    if json:
        print_json(result | {"notes": notes})
        return
    for note in notes:
        print(f"note: {note}")
    print(f"{out}: {len(config.layers)} packed layers, {config.average_bits:.4f} bits on average")
