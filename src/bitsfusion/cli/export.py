"""`bitsfusion export`: a packed folder for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitsfusion.cli.console import print_json, print_table, progress_bars
from bitsfusion.cli.options import Json, Quiet
from bitsfusion.exporting.dense import DTYPE, DTYPES
from bitsfusion.exporting.export import TARGETS
from bitsfusion.exporting.export import export as export_model
from bitsfusion.exporting.exported import Exported
from bitsfusion.exporting.gguf import NAMES
from bitsfusion.exporting.gguf_blocks import BLOCK_TYPES


def export(
    folder: Annotated[str, typer.Argument(help="A packed pipeline or model folder, or a hub id.")],
    to: Annotated[str, typer.Option(help=f"Format to write: {', '.join(TARGETS)}.")],
    out: Annotated[Path, typer.Option(help="Folder or file to write.")],
    dtype: Annotated[
        str | None, typer.Option(help=f"Dtype of a dense folder: {', '.join(DTYPES)}.", show_default=DTYPE)
    ] = None,
    types: Annotated[
        str | None,
        typer.Option(help="Block types that a GGUF file may have.", show_default=",".join(BLOCK_TYPES)),
    ] = None,
    names: Annotated[
        str | None, typer.Option(help=f"Tensor names in a GGUF file: {' or '.join(NAMES)}.", show_default=NAMES[0])
    ] = None,
    vendor: Annotated[
        Path | None,
        typer.Option(help="For a web page: a folder with the archives that `npm pack` makes.", show_default="call npm"),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Converts a packed model to a format that other programs read."""
    with progress_bars(quiet or json) as progress:
        made = export_model(
            folder,
            to,
            out,
            dtype=dtype,
            types=types,
            names=names,
            vendor=vendor,
            progress=lambda done, total: progress.update("export", done, total),
        )
    if json:
        print_json(made.to_dict())
    else:
        _print(made)


def _print(made: Exported) -> None:
    rows = [
        [share.type, str(share.tensors), f"{share.weights:,}", f"{share.bytes:,}", "yes" if share.exact else "rounded"]
        for share in made.shares
    ]
    print_table(["stored as", "tensors", "weights", "bytes", "exact"], rows)
    for note in made.notes:
        print(f"note: {note}")
    print(f"{made.path}: {made.bytes / 1e6:.1f} MB")
