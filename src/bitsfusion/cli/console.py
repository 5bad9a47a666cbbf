"""What the commands print: progress with an estimate on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bitsfusion.runs.progress import ProgressSink


class Bars(ProgressSink):
    """One bar for each step under way."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def update(self, step: str, done: int, total: int, note: str = "") -> None:
        if step not in self._bars:
            self._bars[step] = self._progress.add_task(step, total=total, note="")
        self._progress.update(self._bars[step], completed=done, total=total, note=note)

    def say(self, message: str) -> None:
        self._progress.console.print(message, highlight=False)


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
    console = Console(stderr=True)
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        yield Bars(progress)


def print_json(value: Any) -> None:
    """`value` as JSON on stdout, for scripts."""
    json.dump(value, sys.stdout, indent=1)
    sys.stdout.write("\n")
