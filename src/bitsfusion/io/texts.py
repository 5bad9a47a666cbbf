"""JSON and text files: written whole or not at all, read with one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitsfusion.errors import InputError
from bitsfusion.io.atomic import atomic_path


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


POINTER = "got a git-lfs pointer, wanted the file itself: run `git lfs pull` there"
"""What an error says of a file that `is_pointer`."""


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins like this is what a clone without git-lfs leaves in a large file's place."""
    return start.startswith(b"version https://git-lfs.github.com/spec/v1")


def _read(path: Path, encoding: str) -> str:
    """A file's text; every kind of line end is a line feed."""
    content = Path(path).read_bytes()
    if is_pointer(content):
        raise InputError(f"{path}: {POINTER}")
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: there is no such file, a git-lfs pointer in its place, or it is not JSON.
    """
    try:
        return json.loads(_read(path, "utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted a JSON file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: wanted a JSON file, got {error}") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; of an empty one an empty object.

    Raises:
        InputError: there is no such file, a git-lfs pointer in its place, or it is not YAML.
    """
    import yaml

    try:
        found = yaml.safe_load(_read(path, "utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: wanted a YAML file, got {error}") from None
    return {} if found is None else found


def read_lines(path: Path, wanted: str) -> list[str]:
    """The lines of a UTF-8 text file, without a byte order mark. Nothing but a line feed ends a line: texts may hold
    the other characters that `str.splitlines` takes for an end.

    Raises:
        InputError: there is no such file, a git-lfs pointer in its place, or it is no such text; `wanted` says what it
            should have been.
    """
    try:
        lines = _read(path, "utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: wanted {wanted}, got {error}") from None
    return lines if lines[-1] else lines[:-1]


def json_lines(path: Path, wanted: str) -> Iterator[tuple[str, Any]]:
    """The place of each line ("FILE, line 3") and the JSON that it holds; blank lines are skipped.

    Raises:
        InputError: as `read_lines`, or a line that is not JSON.
    """
    for number, line in enumerate(read_lines(path, wanted), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: wanted {wanted}, got {error}") from None
            yield where, value
