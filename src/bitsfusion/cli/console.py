"""What the commands print: progress with an estimate on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bitsfusion.progress import ProgressSink

_WIDE = 200
"""Columns of a table that goes to a file or another program."""


class Bars(ProgressSink):
    """One bar for each step under way; a finished step leaves one line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def update(self, step: str, done: int, total: int, note: str = "") -> None:
        self._progress.start()
        if step not in self._bars:
            self._bars[step] = self._progress.add_task(step, total=total, note="")
        self._progress.update(self._bars[step], completed=done, total=total, note=note)

    def finish(self, step: str, seconds: float | None) -> None:
        if step in self._bars:
            self._progress.remove_task(self._bars.pop(step))
        took = "done before" if seconds is None else f"{seconds:.0f} s"
        self._progress.console.print(f"{step:<24} {took}", highlight=False)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[ProgressSink]:
    """Bars on stderr; nothing at all when `quiet`."""
    if quiet:
        yield ProgressSink()
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True)
    try:
        yield Bars(progress)
    finally:
        if progress.live.is_started:  # where no bar was shown, not even an empty line is
            progress.stop()


def print_json(value: Any) -> None:
    """`value` as JSON on stdout, for scripts."""
    json.dump(value, sys.stdout, indent=1)
    sys.stdout.write("\n")


def print_table(columns: list[str], rows: list[list[str]], title: str | None = None) -> None:
    """A table on stdout; all columns but the first are aligned to the right. Nothing is broken where no one looks."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)


def print_ladder(summary: Mapping[str, Any], folder: Path) -> None:
    """The rungs of a run as a table, then where its page is."""
    rows = []
    for rung in summary["rungs"]:
        score = "" if rung["geneval"] is None else f"{rung['geneval']['overall']:.3f}"
        figures = [rung[name] for name in ("clip_score", "image_mse", "noise_error", "noise_loss")]
        rows.append([rung["name"], f"{rung['bits']:.3f}", score, *("" if v is None else f"{v:.4f}" for v in figures)])
    print_table(["rung", "bits", "GenEval", "CLIP score", "image MSE", "noise error", "noise loss"], rows)
    bits = summary["bits"]
    before, after = bits["bytes_fp16"], bits["bytes_on_disk"]
    print(f"UNet: {before / 1e6:.2f} MB in FP16, {after / 1e6:.2f} MB packed ({before / after:.1f} x smaller)")
    print(f"Report: {folder / 'report' / 'index.html'}")
