"""The rows of a sensitivity table as they are measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bitsfusion.io.atomic import remove_leftovers
from bitsfusion.io.journal import Journal
from bitsfusion.io.work_folder import sole_lock
from bitsfusion.sensitivity.table import SensitivityRow


def row_journal(out_path: Path, identity: str) -> Journal[SensitivityRow]:
    """The journal beside the table `out_path`; `identity` is the hash of the table without rows."""
    path = out_path.with_name(out_path.name + ".journal")
    return Journal(path, identity, SensitivityRow.model_dump_json, SensitivityRow.model_validate_json)


@contextlib.contextmanager
def only_writer(out_path: Path) -> Iterator[None]:
    """Keeps other processes from measuring into `out_path`; what killed ones left beside it is removed.

    Raises:
        InputError: another process is measuring into it.
        BitsFusionError: the folder cannot be written.
    """
    path = out_path.with_name(out_path.name + ".journal.lock")
    with sole_lock(path, path, "another process is measuring into this file"):
        for file in (out_path, row_journal(out_path, "").path):
            remove_leftovers(file)
        yield
