"""`bitsfusion plan`: sizes before a download."""

from __future__ import annotations

from typing import Annotated

import typer

from bitsfusion.cli.console import print_json, print_table
from bitsfusion.cli.options import Covered, Json, Model, time_cover
from bitsfusion.runs.plan import DEFAULT_BITS, ComponentPlan, PackedPlan, PipelinePlan
from bitsfusion.runs.plan import plan as plan_model


def plan(
    model: Model,
    bits: Annotated[
        float, typer.Option(help="Average bits per weight of the UNet or transformer (Appendix H).")
    ] = DEFAULT_BITS,
    recipe: Annotated[str | None, typer.Option(help="Instead of --bits: a recipe file, sd15, or uniform:N.")] = None,
    cover: Covered = ["basis"],  # noqa: B006
    json: Json = False,
) -> None:
    """Predicts the size of a packed pipeline, layer by layer, from its config.json files; no weights are downloaded."""
    planned = plan_model(model, bits, recipe, samplers=time_cover(cover))
    if json:
        print_json(planned.to_dict())
        return
    packed = planned.denoiser.packed
    assert packed is not None
    _print_layers(packed)
    _print_components(planned)
    _print_denoiser(planned.denoiser, packed)


def _print_layers(packed: PackedPlan) -> None:
    """One line for layers of a role, a kind and a number of bits."""
    groups: dict[tuple[str, str, int], list[int]] = {}
    for layer in packed.layers:
        sums = groups.setdefault((layer.role.value, layer.kind, layer.bits or 0), [0, 0, 0])
        for place, value in enumerate((1, layer.weights, layer.bytes)):
            sums[place] += value
    total = sum(layer.weights for layer in packed.layers)
    rows = [
        [
            role,
            kind,
            str(bits) if bits else "features",
            str(count),
            f"{weights:,}",
            f"{weights / total:.1%}",
            f"{size:,}",
        ]
        for (role, kind, bits), (count, weights, size) in sorted(groups.items())
    ]
    print_table(["role", "kind", "b", "layers", "weights", "share", "bytes"], rows)


def _print_components(planned: PipelinePlan) -> None:
    rows = []
    for part in planned.components:
        packed = part.packed
        rows.append(
            [
                part.name,
                part.class_name,
                "?" if part.weights is None else f"{part.weights:,}",
                "?" if part.bytes_dense is None else f"{part.bytes_dense:,}",
                *(
                    ("", "", "")
                    if packed is None
                    else (f"{packed.average_bits:.4f}", f"{packed.bytes:,}", f"{packed.bytes_at_most:,}")
                ),
            ]
        )
    print_table(["component", "class", "weights", "bytes as it is", "bits", "bytes packed", "at most"], rows)
    print(f"as it is                  {planned.bytes_dense:,} bytes")
    print(f"with init                 {planned.bytes_packed:,} bytes")
    print(f"with init --whole         {planned.bytes_whole:,} bytes")


def _print_denoiser(part: ComponentPlan, packed: PackedPlan) -> None:
    print(f"{part.name} in memory".ljust(25), f"{packed.bytes_in_memory:,} bytes")
    if packed.time is not None:
        print(
            f"the time step alone       {packed.time.layers} layers, {packed.time.weights:,} weights: "
            f"{packed.time.bytes:,} bytes of features in their place save {packed.time.saved:,}"
        )
    for note in packed.notes:
        print(f"note: {note}")
