"""Rows kept as they are measured, so that a killed measurement goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from bitsfusion.errors import BitsFusionError
from bitsfusion.files import write_text
from bitsfusion.sensitivity.table import SensitivityRow


class Journal:
    """A file of JSON lines: first the identity of the measurement, then a row each.

    A row counts once its line is whole; a line cut short by a kill is dropped when the file is opened again.
    A file of another measurement is started over.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.rows = _read(path, identity)
        lines = [json.dumps({"identity": identity}), *(row.model_dump_json() for row in self.rows)]
        write_text(path, "\n".join(lines) + "\n")

    def append(self, row: SensitivityRow) -> None:
        """Adds a row; it is on the disk on return."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(row.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BitsFusionError(f"{self.path}: could not be written ({error.strerror or error})") from error
        self.rows.append(row)

    def remove(self) -> None:
        """Deletes the file: the table holds its rows now."""
        self.path.unlink(missing_ok=True)


def _read(path: Path, identity: str) -> list[SensitivityRow]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    if not lines or lines[0] != json.dumps({"identity": identity}) + "\n":
        return []
    rows = []
    for line in lines[1:]:
        try:
            if line.endswith("\n"):
                rows.append(SensitivityRow.model_validate_json(line))
        except ValidationError:
            break
    return rows
