"""log.jsonl: one line of metrics every few steps, cut back on resume so that no step stands there twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bitsfusion.io.texts import write_text

LOG_NAME = "log.jsonl"


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log; a last line torn by a kill is left out."""
    lines: list[dict[str, float]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def cut_log(path: Path, step: int) -> None:
    """Drops what was logged after `step`: the resumed run writes it again."""
    if path.exists():
        kept = [line for line in read_log(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def append_log(path: Path, line: Mapping[str, float]) -> None:
    """Adds one line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class Window:
    """Sums of the values since the last log line; part of a checkpoint, so that a resumed log is the same."""

    def __init__(self, sums: Mapping[str, float] | None = None, counts: Mapping[str, int] | None = None) -> None:
        self.sums: dict[str, float] = dict(sums or {})
        self.counts: dict[str, int] = dict(counts or {})

    def add(self, values: Mapping[str, float]) -> None:
        """Counts one step's values in."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The mean of each value over the steps that had it; starts anew."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means
