"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitsfusion.devices import AUTO
from bitsfusion.errors import InputError

if TYPE_CHECKING:
    from bitsfusion.diffusion.time_features import Cover

Model = Annotated[
    str, typer.Argument(help='A diffusers folder, a hub id, "embedded", "embedded:grid" or "embedded:flow".')
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Size = Annotated[
    int | None, typer.Option(min=8, help="Height and width of the pictures in pixels.", show_default="the model's own")
]
Device = Annotated[
    str, typer.Option(help=f"Device to compute on: {AUTO} (an accelerator if there is one), cpu, cuda, cuda:1, mps.")
]
ConfigDevice = Annotated[
    str | None, typer.Option("--device", help="Device to compute on, instead of the config's: cpu, cuda, cuda:1, mps.")
]
Covered = Annotated[
    list[str],
    typer.Option(
        "--cover",
        help="Time steps that the packed model serves. basis: all, by a low-rank basis with an error of at most 0.005. "
        "NAME:STEPS: exactly those of a sampler (any scheduler of diffusers, or own for the folder's), repeatable. "
        "any: all, by time layers kept at 8 bits.",
    ),
]


def time_cover(cover: list[str]) -> Cover:
    """`["basis"]`, `["any"]` as None, or `["pndm:50", "dpm:20"]` as sampler steps.

    Raises:
        InputError: anything else, or no such sampler.
    """
    from bitsfusion.diffusion.samplers import SamplerSteps, sampler_name  # which imports diffusers
    from bitsfusion.diffusion.time_features import BASIS

    if cover in ([BASIS], ["auto"]):  # the name it had while rows were the default
        return BASIS
    if cover == ["any"]:
        return None
    chosen = []
    for text in cover:
        name, _, steps = text.partition(":")
        if not steps.isdigit():
            raise InputError(
                f"cover: got {text!r}{' among others' * (len(cover) > 1)}, wanted basis, any, or NAME:STEPS such as "
                "pndm:50 or own:30"
            )
        chosen.append(SamplerSteps(sampler_name(name), int(steps)))
    return chosen


CaptionedData = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Captioned images: a folder with a metadata.jsonl, WebDataset shards (tar files, braces, or a folder of "
        "them), or a dataset of the datasets library. Embedded models need none.",
    ),
]
