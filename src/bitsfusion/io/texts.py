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


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted a JSON file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: wanted a JSON file, got {error}") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; of an empty one an empty object.

    Raises:
        InputError: there is no such file, or it is not YAML.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: wanted a YAML file, got {error}") from None
    return {} if found is None else found


def read_lines(path: Path, wanted: str) -> list[str]:
    """The lines of a UTF-8 text file, without a byte order mark. Nothing but a line feed ends a line: texts may hold
    the other characters that `str.splitlines` takes for an end.

    Raises:
        InputError: there is no such file, or it is no such text; `wanted` says what it should have been.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
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
