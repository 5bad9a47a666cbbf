"""TIFA's files as its authors publish them: questions, captions, and where the images lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from bitsfusion.errors import InputError
from bitsfusion.io.schema import parse
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.metrics.tifa.questions import TifaCaption, TifaQuestion

Entry = TypeVar("Entry", bound=BaseModel)


def read_questions(path: Path) -> list[TifaQuestion]:
    """The questions of a file such as tifa_v1.0_question_answers.json, in its order.

    Raises:
        InputError: an entry is not one; the line names it.
    """
    return _entries(path, TifaQuestion, "questions")


def read_captions(path: Path) -> list[TifaCaption]:
    """The captions of a file such as tifa_v1.0_text_inputs.json, in its order.

    Raises:
        InputError: an entry is not one, or two have the same id; the line names it.
    """
    captions = _entries(path, TifaCaption, "captions")
    first: dict[str, int] = {}
    for number, caption in enumerate(captions):
        if first.setdefault(caption.id, number) != number:
            raise InputError(
                f"{path}: entry {number}: got id {caption.id!r} again (entry {first[caption.id]}), "
                "wanted one entry a caption"
            )
    return captions


def write_image_paths(path: Path, images: Mapping[str, Path]) -> None:
    """Writes the map; files below its folder are named relative to it."""
    folder = Path(path).parent.resolve()

    def shown(file: Path) -> str:
        whole = Path(file).resolve()
        return (whole.relative_to(folder) if whole.is_relative_to(folder) else whole).as_posix()

    write_json(path, {name: shown(file) for name, file in images.items()})


def _entries(path: Path, schema: type[Entry], what: str) -> list[Entry]:
    value = read_json(path)
    if not isinstance(value, list):
        raise InputError(f"{path}: got {type(value).__name__}, wanted a list of {what}")
    if not value:
        raise InputError(f"{path}: got no entry, wanted {what}")
    return [parse(schema, entry, f"{path}: entry {number}{_named(entry)}") for number, entry in enumerate(value)]


def _named(entry: Any) -> str:
    """The caption's id and the question of an entry, so that it is found in the file."""
    if not isinstance(entry, dict):
        return ""
    parts = [str(entry[key]) for key in ("id", "question") if isinstance(entry.get(key), (str, int))]
    return f" ({', '.join(parts)})" if parts else ""
