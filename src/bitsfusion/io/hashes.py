"""Hashes of files, folders and JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of `value` as canonical JSON (sorted keys, no spaces), in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_folder(path: Path, without: Container[str] = ()) -> str:
    """The SHA-256 over the relative names and contents of every file below a folder, in hex; of its own files and
    folders, those named in `without` are passed over."""
    path = Path(path)
    files = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
    kept = {name.as_posix(): file for name, file in files.items() if name.parts[0] not in without}
    return sha256_json({name: sha256_file(file) for name, file in kept.items()})
