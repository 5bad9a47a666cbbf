"""`bitsfusion generate`: images of a packed folder, or of any pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitsfusion.cli.console import progress_bars
from bitsfusion.cli.options import Device, Quiet, Size
from bitsfusion.devices import AUTO
from bitsfusion.diffusion.samplers import OWN, sampler_name
from bitsfusion.embedded import guidance_of
from bitsfusion.evaluation.drawing import generate_to_folder


def generate(
    folder: Annotated[str, typer.Argument(help="A packed folder, or any diffusers pipeline.")],
    prompts: Annotated[list[str], typer.Argument(help="One image each.")],
    out: Annotated[Path, typer.Option(help="Folder for the PNG files and metadata.jsonl.")] = Path("images"),
    sampler: Annotated[
        str, typer.Option(help="The folder's own scheduler (own), or any scheduler of diffusers by name.")
    ] = OWN,
    steps: Annotated[int, typer.Option(min=1)] = 50,
    guidance: Annotated[float | None, typer.Option(help="[default: 7.5, embedded:grid 3]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first image; the next ones count on.")] = 1024,
    size: Size = None,
    device: Device = AUTO,
    quiet: Quiet = False,
) -> None:
    """Draws images with a packed model."""
    with progress_bars(quiet) as progress:
        paths = generate_to_folder(
            folder,
            prompts,
            out,
            sampler=sampler_name(sampler),
            steps=steps,
            guidance=guidance_of(folder) if guidance is None else guidance,
            seed=seed,
            size=size,
            device=device,
            progress=progress.step("generate"),
        )
    for path in paths:
        print(path)
