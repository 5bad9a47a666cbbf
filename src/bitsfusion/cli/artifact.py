"""`bitsfusion inspect`, `verify`, `generate`: what can be done with a packed folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bitsfusion.artifact.inspect import ComponentSize, Inspection, inspect_folder, inspect_pipeline
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.cli.console import print_json, print_table, progress_bars
from bitsfusion.cli.options import Device, Json, Quiet
from bitsfusion.devices import AUTO
from bitsfusion.diffusion.samplers import Sampler
from bitsfusion.runs.singles import generate_to_folder

Folder = Annotated[Path, typer.Argument(help="A packed pipeline or model folder.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (inspect, verify, generate):
        app.command()(command)


def inspect(folder: Folder, json: Json = False) -> None:
    """Where every byte is, layer by layer."""
    if not (folder / "model_index.json").is_file():
        inspection = inspect_folder(folder)
        if json:
            print_json(inspection.to_dict())
        else:
            _print_inspection(inspection)
        return
    parts = inspect_pipeline(folder)
    packed = {part.name: part.packed for part in parts if part.packed is not None}
    if json:
        first = packed.get("unet") or next(iter(packed.values()))
        print_json(first.to_dict() | {"pipeline": _pipeline(parts)})
        return
    for name, inspection in packed.items():
        print(f"{name}:")
        _print_inspection(inspection)
    _print_pipeline(parts)


def _pipeline(parts: Sequence[ComponentSize]) -> dict[str, Any]:
    """Every part's bytes; of packed components all that `inspect_folder` says."""
    components = {
        part.name: {
            "form": part.form,
            "bytes_on_disk": part.bytes_on_disk,
            "packed": None if part.packed is None else part.packed.to_dict(),
        }
        for part in parts
    }
    return {"bytes_on_disk": sum(part.bytes_on_disk for part in parts), "components": components}


def _print_pipeline(parts: Sequence[ComponentSize]) -> None:
    total = sum(part.bytes_on_disk for part in parts)
    rows = []
    for part in parts:
        bits, fp16 = "", ""
        if part.packed is not None:
            bits, fp16 = f"{part.packed.average_bits:.4f}", f"{part.packed.bytes_fp16:,}"
        rows.append([part.name, part.form, bits, f"{part.bytes_on_disk:,}", f"{part.bytes_on_disk / total:.1%}", fp16])
    print_table(
        ["component", "form", "bits", "bytes", "share", "in FP16"], [*rows, ["pipeline", "", "", f"{total:,}", "", ""]]
    )
    dense = ", ".join(part.name for part in parts if part.form == "dense") or "none"
    print(f"components kept dense       {dense}")


def _print_inspection(inspection: Inspection) -> None:
    print_table(
        ["layer", "b", "levels", "weights", "entropy", "on disk", "in memory"],
        [
            [
                layer.name,
                str(layer.bits),
                str(layer.levels),
                str(layer.weights),
                f"{layer.entropy:.3f}",
                str(layer.bytes_on_disk),
                str(layer.bytes_in_memory),
            ]
            for layer in inspection.layers
        ],
    )
    disk = inspection.bytes_on_disk
    rows = [
        ["weights", disk.weights],
        ["scales", disk.scales],
        ["time features", disk.time_features],
        ["other parameters", disk.other],
        ["header", disk.header],
        ["file", disk.total],
        ["in memory", inspection.bytes_in_memory],
        ["in FP16", inspection.bytes_fp16],
    ]
    print_table(["part", "bytes"], [[str(name), f"{count:,}"] for name, count in rows])
    print(f"average bits (Appendix H)   {inspection.average_bits:.4f}")
    print(f"entropy, bits a weight      {inspection.entropy_bits:.4f}")
    print(f"on disk, bits a weight      {inspection.true_bits:.4f}")
    kept = ", ".join(inspection.fallbacks) or "none"
    print(f"layers kept dense           {kept}")


def verify(folder: Folder) -> None:
    """Checks hashes, shapes and ranges; exit code 1 and the layer's name where something is wrong."""
    verify_folder(folder)
    print(f"{folder}: every layer is as it was packed")


def generate(
    folder: Annotated[str, typer.Argument(help="A packed folder, or any diffusers pipeline.")],
    prompts: Annotated[list[str], typer.Argument(help="One image each.")],
    out: Annotated[Path, typer.Option(help="Folder for the PNG files and metadata.jsonl.")] = Path("images"),
    sampler: Annotated[Sampler, typer.Option()] = Sampler.PNDM,
    steps: Annotated[int, typer.Option(min=1)] = 50,
    guidance: Annotated[float, typer.Option()] = 7.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the first image; the next ones count on.")] = 1024,
    device: Device = AUTO,
    quiet: Quiet = False,
) -> None:
    """Draws images with a packed model."""
    with progress_bars(quiet) as progress:
        paths = generate_to_folder(
            folder,
            prompts,
            out,
            sampler=sampler.value,
            steps=steps,
            guidance=guidance,
            seed=seed,
            device=device,
            progress=lambda done, total: progress.update("generate", done, total),
        )
    for path in paths:
        print(path)
