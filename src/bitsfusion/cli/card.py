"""`bitsfusion card`: the model card of a packed folder, and the way to the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bitsfusion.cli.console import progress_bars
from bitsfusion.cli.options import Device, Quiet
from bitsfusion.devices import AUTO
from bitsfusion.errors import InputError
from bitsfusion.report.card import (
    HUB_ID,
    default_prompts,
    hub_id,
    known_license,
    original_of,
    run_scores,
    write_card,
)
from bitsfusion.report.hub import push_to_hub as upload


def card(
    folder: Annotated[Path, typer.Argument(help="A packed pipeline folder.")],
    license: Annotated[
        str | None,
        typer.Option(help="License of the original, as the hub names it: apache-2.0, creativeml-openrail-m ..."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the original, if the scores do not name it.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="summary.json of a run or scores.json of `evaluate`; by default the summary.json beside the folder."
        ),
    ] = None,
    prompt: Annotated[list[str], typer.Option(help="Prompt of a sample to draw. May be repeated.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first sample; the others count up from it.")] = 1024,
    guidance: Annotated[float, typer.Option(help="Guidance scale of the samples.")] = 7.5,
    command: Annotated[str, typer.Option(help="Command that made the folder, to be shown in the card.")] = "",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to this repository of the hub.")
    ] = None,
    private: Annotated[bool, typer.Option(help="Make the repository private, if it is new.")] = False,
    device: Device = AUTO,
    quiet: Quiet = False,
) -> None:
    """Writes a model card into a packed folder: bits, sizes, scores, samples and how to load it."""
    if base_model is not None and not HUB_ID.fullmatch(base_model):
        raise InputError(f"base model: got {base_model!r}, wanted the original's hub id, OWNER/NAME")
    scores = scores or run_scores(folder)
    original = base_model or original_of(scores)
    with progress_bars(quiet) as progress:
        path = write_card(
            folder,
            license=license or known_license(folder, original) or _asked(),
            name=push_to_hub,
            base_model=base_model or hub_id(original),
            scores=scores,
            prompts=prompt or default_prompts(original),
            seed=seed,
            guidance=guidance,
            command=command,
            device=device,
            progress=progress.step("samples"),
        )
    print(path)
    if push_to_hub is not None:
        print(upload(folder, push_to_hub, private=private))


def _asked() -> str:
    """Asks the person at the keyboard, if there is one."""
    if not sys.stdin.isatty():
        raise InputError("license: got none, wanted --license NAME, the original's, such as creativeml-openrail-m")
    return str(typer.prompt("License of the original (apache-2.0, creativeml-openrail-m ...)"))
