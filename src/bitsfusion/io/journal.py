"""Keeps results line by line, so that killed work resumes where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bitsfusion.errors import BitsFusionError
from bitsfusion.io.texts import write_text

Row = TypeVar("Row")


@dataclass(frozen=True)
class Journal(Generic[Row]):
    """A file of JSON lines: first the identity of the work, then a row each. One process writes it at a time.

    A row counts once its line is whole; what follows a line cut short by a kill is dropped. A file of other work is
    started over.

    Fields:
        path: of the file.
        identity: names all that the rows depend on.
        to_text: a row as one line of JSON.
        from_text: its inverse; raises ValueError, TypeError or KeyError for a line that is no row.
    """

    path: Path
    identity: str
    to_text: Callable[[Row], str]
    from_text: Callable[[str], Row]

    def read(self) -> list[Row]:
        """The rows so far; none where the file is of other work or not there."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        if lines[:1] != [self._header]:
            return []
        rows = []
        for line in lines[1:]:
            try:
                if not line.endswith("\n"):
                    break
                rows.append(self.from_text(line))
            except (ValueError, TypeError, KeyError):
                break
        return rows

    def open(self) -> list[Row]:
        """The same; the file is ready for the next rows.

        Raises:
            BitsFusionError: it cannot be written.
        """
        rows = self.read()
        write_text(self.path, "".join([self._header, *(self.to_text(row) + "\n" for row in rows)]))
        return rows

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows; they are on the disk on return.

        Raises:
            BitsFusionError: it cannot be written.
        """
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(self.to_text(row) + "\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BitsFusionError(f"{self.path}: could not be written ({error.strerror or error})") from error

    def remove(self) -> None:
        """Deletes the file, once its rows are kept elsewhere."""
        self.path.unlink(missing_ok=True)

    @property
    def _header(self) -> str:
        return json.dumps({"identity": self.identity}) + "\n"
