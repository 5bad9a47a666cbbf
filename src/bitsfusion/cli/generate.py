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
    prompts: Annotated[list[str], typer.Argument(help="Prompts; each gives one image.")],
    out: Annotated[Path, typer.Option(help="Folder for the PNG files and metadata.jsonl.")] = Path("images"),
    sampler: Annotated[str, typer.Option(help="Any scheduler of diffusers by name, or own for the folder's.")] = OWN,
    steps: Annotated[int, typer.Option(min=1, help="Sampler steps.")] = 50,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale.", show_default="7.5, or the embedded model's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; the others count up from it.")] = 1024,
    size: Size = None,
    device: Device = AUTO,
    quiet: Quiet = False,
) -> None:
    """Generates images with a packed model, or with any pipeline."""
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
