"""`SHA256SUMS`: the hash of every file of a packed pipeline, in the form that `sha256sum -c` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bitsfusion.artifact.limits import JSON_BYTES, shown
from bitsfusion.errors import ArtifactError
from bitsfusion.io.hashes import sha256_file
from bitsfusion.pipelines.resolve import HASHES_FILE

_LINE = re.compile(r"(?P<hash>[0-9a-f]{64})  (?P<name>[^\x00-\x1f\\]+)")


def write_hashes(folder: Path) -> None:
    """Writes the file into a finished folder: a line for every other file, in order of name."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    lines = [f"{sha256_file(files[name])}  {name}\n" for name in sorted(files, key=str.encode) if name != HASHES_FILE]
    (folder / HASHES_FILE).write_text("".join(lines), encoding="utf-8", newline="\n")


def forget_hashes(component: Path) -> None:
    """Removes the file of a packed pipeline that lists the files of a component, which is written anew."""
    component = component.resolve()
    try:
        listed = read_hashes(component.parent) or {}
    except ArtifactError:
        return  # not ours
    if any(name.startswith(f"{component.name}/") for name in listed):
        (component.parent / HASHES_FILE).unlink()


def read_hashes(folder: Path) -> Mapping[str, str] | None:
    """Name, relative and with `/`, -> SHA-256; None where the folder has no such file.

    Raises:
        ArtifactError: it is not as `write_hashes` writes it.
    """
    path = folder / HASHES_FILE
    if not path.is_file():
        return None
    try:
        size = path.stat().st_size
        if size > JSON_BYTES:
            raise ArtifactError(f"{path}: got {size} bytes, wanted at most {JSON_BYTES}")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: got {shown(error)}, wanted lines of a hash and a name") from None
    hashes: dict[str, str] = {}
    for line in lines[:-1] if lines[-1] == "" else lines:
        found = _LINE.fullmatch(line)
        if found is None or not _inside(found["name"]) or found["name"] in hashes:
            raise ArtifactError(f"{path}: got the line {shown(repr(line), 80)}, wanted a hash and a name of its own")
        hashes[found["name"]] = found["hash"]
    return hashes


def _inside(name: str) -> bool:
    """Whether a name stays in the folder."""
    return all(part not in ("", ".", "..") for part in name.split("/"))
