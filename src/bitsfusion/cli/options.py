"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from bitsfusion.devices import AUTO
from bitsfusion.diffusion.samplers import SamplerSteps
from bitsfusion.errors import InputError

Model = Annotated[str, typer.Argument(help='A diffusers folder, a hub id, or "embedded".')]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[
    str, typer.Option(help=f"Where it computes: {AUTO} (an accelerator if there is one), cpu, cuda, cuda:1, mps.")
]
ConfigDevice = Annotated[
    str | None, typer.Option("--device", help="In the place of the config's device: cpu, cuda, cuda:1, mps.")
]
Cover = Annotated[
    list[str],
    typer.Option(
        help="Samplers whose time steps are cached, as NAME:STEPS; repeat for more. "
        "`any` keeps the time layers at 8 bits."
    ),
]


def samplers_to_cover(cover: list[str]) -> list[SamplerSteps] | None:
    """`["pndm:50", "dpm:20"]` as sampler steps; `["any"]` as None."""
    if cover == ["any"]:
        return None
    chosen = []
    for text in cover:
        name, _, steps = text.partition(":")
        if not steps.isdigit():
            raise InputError(f"cover: got {text!r}, wanted NAME:STEPS such as pndm:50, or any")
        chosen.append(SamplerSteps(name, int(steps)))
    return chosen
