"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitsfusion.errors import InputError

if TYPE_CHECKING:
    from bitsfusion.diffusion.samplers import SamplerSteps

Model = Annotated[str, typer.Argument(help='A diffusers folder, a hub id, or "embedded".')]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Cover = Annotated[
    list[str],
    typer.Option(
        help="Samplers whose time steps are cached, as NAME:STEPS; repeat for more. "
        "`any` keeps the time layers at 8 bits."
    ),
]


def samplers_to_cover(cover: list[str]) -> list[SamplerSteps] | None:
    """`["pndm:50", "dpm:20"]` as sampler steps; `["any"]` as None."""
    from bitsfusion.diffusion.samplers import SamplerSteps  # which imports diffusers

    if cover == ["any"]:
        return None
    chosen = []
    for text in cover:
        name, _, steps = text.partition(":")
        if not steps.isdigit():
            raise InputError(f"cover: got {text!r}, wanted NAME:STEPS such as pndm:50, or any")
        chosen.append(SamplerSteps(name, int(steps)))
    return chosen
