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
        str | None, typer.Option(help="The original's, as the hub names it: apache-2.0, creativeml-openrail-m ...")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="The original's hub id, if the scores name none.")] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="summary.json of a run (by default the one around the folder) or scores.json."),
    ] = None,
    prompt: Annotated[list[str], typer.Option(help="Of a sample to draw; repeat for more.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="Of the first sample; the next ones count on.")] = 1024,
    guidance: Annotated[float, typer.Option(help="Of the samples.")] = 7.5,
    command: Annotated[str, typer.Option(help="That made the folder, to be shown.")] = "",
    push_to_hub: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder there.")] = None,
    private: Annotated[bool, typer.Option(help="If the repository has to be made, for its owner only.")] = False,
    device: Device = AUTO,
    quiet: Quiet = False,
) -> None:
    """Writes README.md, with bits, sizes, scores, samples and how to load it, into a packed folder."""
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
    """By the person at the keyboard, if there is one."""
    if not sys.stdin.isatty():
        raise InputError("license: got none, wanted --license NAME, the original's, such as creativeml-openrail-m")
    return str(typer.prompt("License of the original (apache-2.0, creativeml-openrail-m ...)"))
