"""Rows kept as they are measured, so that a killed measurement goes on where it was."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from pydantic import ValidationError

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.io.files import write_text
from bitsfusion.sensitivity.table import SensitivityRow


class Journal:
    """A file of JSON lines: first the identity of the measurement, then a row each.

    A row counts once its line is whole; a line cut short by a kill is dropped when the file is opened again.
    A file of another measurement is started over. While it is open, no other process can open it.

    Raises:
        InputError: another process has it open.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock = _locked(self._lock_path)
        self.rows = read_journal(path, identity)
        lines = [json.dumps({"identity": identity}), *(row.model_dump_json() for row in self.rows)]
        write_text(path, "\n".join(lines) + "\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets other processes open it."""
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)

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


def _locked(path: Path) -> int:
    """A descriptor that holds the lock on a file of this name; the file is made if it is not there."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise BitsFusionError(f"{path}: could not be written ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(f"{path}: another process is measuring into this file") from None
        except FileNotFoundError:  # its last owner has just removed it
            pass
        os.close(descriptor)


def read_journal(path: Path, identity: str) -> list[SensitivityRow]:
    """The rows measured so far; none where the file is of another measurement or not there."""
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
