"""`bitsfusion inspect` and `verify`: what can be said of a packed folder without loading it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bitsfusion.architectures.registry import DENOISER_COMPONENTS
from bitsfusion.artifact.inspect import ComponentSize, Inspection, inspect_folder, inspect_pipeline
from bitsfusion.artifact.verify import verify as verify_path
from bitsfusion.cli.console import print_json, print_table
from bitsfusion.cli.options import Json
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.pipelines.folder import INDEX
from bitsfusion.pipelines.resolve import resolve

Folder = Annotated[str, typer.Argument(help="A packed pipeline or model folder, or a hub id.")]


def inspect(folder: Folder, json: Json = False) -> None:
    """Shows bits, entropy and bytes of every layer and component of a packed folder."""
    path = _local(folder)
    if not (path / INDEX).is_file():
        inspection = inspect_folder(path)
        if json:
            print_json(inspection.to_dict())
        else:
            _print_inspection(inspection)
        return
    parts = inspect_pipeline(path)
    packed = {part.name: part.packed for part in parts if part.packed is not None}
    if json:
        first = next(packed[name] for name in (*DENOISER_COMPONENTS, *packed) if name in packed)
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
    print(f"time features               {_time_features(inspection.time_features)}")
    if (gone := inspection.removed) is not None:
        saving = f"save {gone.saved:,}" if gone.saved >= 0 else f"take {-gone.saved:,} more"
        print(
            f"time layers removed         {gone.layers} layers, {gone.weights:,} weights, packed at {gone.bits} bits "
            f"{gone.layer_bytes:,} bytes: {gone.feature_bytes:,} bytes of features in their place {saving}"
        )
    kept = ", ".join(inspection.fallbacks) or "none"
    print(f"layers kept dense           {kept}")
    for note in inspection.notes:
        print(f"note: {note}")


def verify(folder: Folder, json: Json = False) -> None:
    """Checks every file of a packed folder: hashes, shapes, values and file types. Exit code 1 if any is wrong."""
    path = _local(folder)
    found = verify_path(path)
    unchecked = list(found.unchecked)
    if not Path(folder).is_dir():
        unchecked.append("files of the repository that loading does not fetch")
    if json:
        print_json(found.to_dict() | {"unchecked": unchecked})
        raise typer.Exit(1 if found.faults else 0)
    for line in unchecked:
        print(f"not checked: {line}")
    if found.faults:
        *others, last = found.faults
        for fault in others:
            print(f"bitsfusion: {fault}", file=sys.stderr)
        raise ArtifactError(last)
    layers = "every layer is as it was packed"
    print(f"{folder}: {layers}" + (f", and each of {found.files} files as it was written" if found.files else ""))


def _local(folder: str) -> Path:
    """The folder itself, or the local copy of a hub id; a broken folder is for the command to judge."""
    if Path(folder).is_file():
        raise InputError(f"{folder}: got a file, wanted a packed model or pipeline folder, or a hub id")
    return Path(folder) if Path(folder).is_dir() else resolve(folder).path


def _time_features(features: Mapping[str, Any]) -> str:
    """What is stored of them, in words."""
    if features["kind"] == "basis":
        return (
            f"every step: a basis of rank {features['rank']} within {features['error']:g}, "
            f"{features['values']:,} values"
        )
    if features["kind"] == "cached":
        samplers = ", ".join(f"{each['name']} {each['steps']} steps" for each in features["samplers"])
        return (
            f"{len(features['steps'])} steps exactly ({samplers or 'no sampler named'}), {features['values']:,} values"
        )
    return "every step: time layers at 8 bits" if features["kind"] == "layers_8bit" else "none"
