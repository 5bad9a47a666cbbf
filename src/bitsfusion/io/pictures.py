"""Folders of pictures with their prompts, drawn here or by any other generator.

Either pictures beside a metadata.jsonl of {"file_name", "text"}, as `bitsfusion generate` writes them, or the tree of
GenEval's evaluator:

00000/metadata.jsonl    one prompt, as a line of the prompt file
00000/samples/0000.png  its pictures
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsfusion.errors import InputError
from bitsfusion.io.texts import json_lines

METADATA_NAME = "metadata.jsonl"


@dataclass(frozen=True)
class PromptedPicture:
    """A picture's file, links followed, and its prompt.

    Fields:
        metadata: the whole line of the metadata, as an object.
        where: the file and number of that line, for messages.
    """

    path: Path
    prompt: str
    metadata: Mapping[str, Any]
    where: str


def holds_pictures(folder: str | Path) -> bool:
    """Whether there is such a folder, by its metadata; a pipeline's folder never counts, whatever else lies in it."""
    if (Path(folder) / "model_index.json").is_file():
        return False
    return (Path(folder) / METADATA_NAME).is_file() or is_tree(folder)


def is_tree(folder: str | Path) -> bool:
    """Whether it is GenEval's tree."""
    return not (Path(folder) / METADATA_NAME).is_file() and bool(_trees(Path(folder)))


def read_pictures(folder: Path) -> Iterator[PromptedPicture]:
    """Every picture, in the order of the metadata; none is opened.

    Raises:
        InputError: there is no such folder, its metadata has another form, or a picture is missing or lies outside.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, wanted pictures and {METADATA_NAME}")
    if (folder / METADATA_NAME).is_file():
        for where, line in _lines(folder / METADATA_NAME):
            prompt, name = line.get("text", line.get("prompt")), line.get("file_name")
            if not isinstance(prompt, str) or not isinstance(name, str):
                raise InputError(f'{where}: wanted {{"file_name": ..., "text": ...}}, got {str(line)[:80]}')
            yield PromptedPicture(_inside(folder, folder / name, where), prompt.strip(), line, where)
        return
    trees = _trees(folder)
    if not trees:
        raise InputError(
            f"{folder}: wanted {METADATA_NAME} with pictures, or GenEval's folders 00000, 00001 ...; got neither"
        )
    for tree in trees:
        where, line = next(_lines(tree / METADATA_NAME), (str(tree / METADATA_NAME), {}))
        if not isinstance(line.get("prompt"), str):
            raise InputError(f'{where}: wanted {{"prompt": ...}}, got {str(line)[:80]}')
        samples = tree / "samples"
        found = [path for path in samples.iterdir() if re.fullmatch(r"\d+\.png", path.name)] if samples.is_dir() else []
        for path in sorted(found, key=lambda path: int(path.stem)):
            yield PromptedPicture(_inside(folder, path, where), line["prompt"].strip(), line, where)


def _trees(folder: Path) -> list[Path]:
    """The prompts' folders; none where not one has metadata."""
    numbered = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    numbered.sort(key=lambda path: int(path.name))
    return numbered if any((path / METADATA_NAME).is_file() for path in numbered) else []


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line is, and the object that it holds."""
    return ((where, value if isinstance(value, dict) else {}) for where, value in json_lines(path, "lines of JSON"))


def _inside(folder: Path, path: Path, where: str) -> Path:
    """`path` without links, which has to lie below `folder`."""
    real = path.resolve()
    if not real.is_relative_to(folder.resolve()):
        raise InputError(f"{where}: got {path.name!r}, which lies outside {folder}; wanted a picture in it")
    if not real.is_file():
        raise InputError(f"{where}: {path}: no such picture")
    return real
