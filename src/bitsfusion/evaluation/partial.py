"""Judgements kept as they are made, so that a killed measurement goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bitsfusion.errors import BitsFusionError
from bitsfusion.evaluation.measures import Judgement
from bitsfusion.io.files import write_text


@dataclass(frozen=True)
class PartialJudgements:
    """A file of JSON lines: the identity of the measurement, then an image each, in order.

    What follows a line cut short, or no judgement, is dropped; a file of another measurement is started over.
    """

    path: Path
    identity: str

    def open(self) -> list[Judgement]:
        """The judgements made so far; the file is ready for the next ones."""
        header = json.dumps({"identity": self.identity}) + "\n"
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            lines = []
        judgements = []
        for line in lines[1:] if lines[:1] == [header] else []:
            if (judgement := _judgement(line)) is None:
                break
            judgements.append(judgement)
        write_text(self.path, "".join([header, *lines[1 : len(judgements) + 1]]))
        return judgements

    def append(self, judgements: Sequence[Judgement]) -> None:
        """Adds the next images; they are on the disk on return.

        Raises:
            BitsFusionError: it cannot be written.
        """
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(asdict(judgement)) + "\n" for judgement in judgements))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BitsFusionError(f"{self.path}: could not be written ({error.strerror or error})") from error

    def remove(self) -> None:
        """Once the whole is kept elsewhere."""
        self.path.unlink(missing_ok=True)


def _judgement(line: str) -> Judgement | None:
    """None if the line is not a whole one."""
    try:
        values = json.loads(line) if line.endswith("\n") else {}
        return Judgement(float(values["value"]), values["record"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
