"""`bitsfusion reproduce`: the paper's Tables 3 to 7 on the embedded model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bitsfusion.cli.console import print_json, progress_bars
from bitsfusion.cli.interruption import resumable
from bitsfusion.cli.options import Device, Json, Quiet
from bitsfusion.devices import AUTO
from bitsfusion.errors import InputError
from bitsfusion.io.schema import parse
from bitsfusion_lab.reproduction.frame import Frame
from bitsfusion_lab.reproduction.plan import plan
from bitsfusion_lab.reproduction.settings import Settings
from bitsfusion_lab.reproduction.table import make_table, table_path
from bitsfusion_lab.reproduction.tables import TABLES, chosen_tables


def reproduce(
    table: Annotated[
        str, typer.Option(help=f"{', '.join(map(str, TABLES))}, several separated by commas, or all.")
    ] = "4",
    out: Annotated[Path, typer.Option(help="Folder. The same command resumes it.")] = Path("runs/reproduce"),
    seeds: Annotated[str, typer.Option(help="Training seeds, separated by commas.")] = "0,1,2",
    steps: Annotated[int, typer.Option(min=1, help="Training steps of Stage I; Stage II has half of them.")] = 200,
    per_task: Annotated[int, typer.Option(min=1, help="Prompts of each of the six tasks.")] = 50,
    split: Annotated[str, typer.Option(help="Prompts to use: validation to choose settings, test to report.")] = "test",
    guidance: Annotated[
        str, typer.Option(help="Guidance scales, separated by commas; the paper has 3.5,5.5,7.5,9.5.")
    ] = "7.5",
    sampler_steps: Annotated[int, typer.Option(min=1, help="Sampler steps of PNDM.")] = 50,
    sensitivity: Annotated[
        Path | None,
        typer.Option(help="Sensitivity file of the embedded model to use, instead of measuring noise error."),
    ] = None,
    device: Device = AUTO,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings and what they will cost, and stop.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Reproduces the paper's tables in miniature, every method with the same data, steps, prompts and seeds."""
    values = {
        "seeds": _numbers("seeds", seeds, int, 2**63 - 1),
        "steps": steps,
        "per_task": per_task,
        "split": split,
        "guidance": _numbers("guidance", guidance, float, 1000),
        "sampler_steps": sampler_steps,
        "sensitivity": sensitivity,
        "device": device,
    }
    settings = parse(Settings, values, "reproduce")
    tables = chosen_tables(table)
    if dry_run:
        print_json({"settings": settings.model_dump(mode="json"), "plan": asdict(plan(tables, settings))})
        return
    with progress_bars(quiet) as progress, resumable():
        frame = Frame(settings, out, progress)
        try:
            contents = [make_table(frame, one) for one in tables]
        finally:
            frame.close()
    if json:
        print_json(contents)
        return
    for one in tables:
        print(table_path(out, one.number).read_text(encoding="utf-8"))


def _numbers(name: str, text: str, kind: type, most: int) -> list[float]:
    try:
        numbers = [kind(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"{name}: got {text!r}, wanted numbers with commas between") from None
    if not numbers or not all(0 <= number <= most for number in numbers):  # NaN fails as well
        raise InputError(f"{name}: got {text!r}, wanted numbers from 0 to {most} with commas between")
    return numbers
