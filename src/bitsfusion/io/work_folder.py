"""A folder that one process works in: locked, and cleared of what killed ones left half written."""

from __future__ import annotations

import os
from pathlib import Path

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.io.atomic import remove_all_leftovers
from bitsfusion.io.locks import Lock, try_lock


def cache_folder(name: str) -> Path:
    """Where files that can be made again are kept: bitsfusion/`name` below XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitsfusion" / name


def folder_lock(folder: Path, file: Path) -> Lock:
    """Keeps other processes out of `folder` until what is returned is closed; makes both.

    Half-written files of killed processes (`.NAME.*.partial`), in it and in its folders, are removed.

    Raises:
        InputError: it is a file, or another process holds the lock.
        BitsFusionError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: got a file, wanted a folder or a new name")
    lock = sole_lock(file, folder, "another process is working in this folder")
    remove_all_leftovers(folder)
    return lock


def sole_lock(file: Path, place: Path, taken: str) -> Lock:
    """The lock on `file`, whose folder is made; errors name `place`.

    Raises:
        InputError: another process holds it: `taken`.
        BitsFusionError: the folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = try_lock(file)
    except OSError as error:
        raise BitsFusionError(f"{place}: could not be written ({error.strerror})") from error
    if lock is None:
        raise InputError(f"{place}: {taken}")
    return lock
