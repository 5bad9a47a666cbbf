"""TIFA's files as they are published: captions, questions with choices, and where each caption's image is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bitsfusion.errors import InputError
from bitsfusion.files import read_json, write_json
from bitsfusion.schema import parse


class Caption(BaseModel):
    """A text that an image is drawn of; other keys (coco_val_id) are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    caption: str = Field(min_length=1)

    @field_validator("id", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


class Question(Caption):
    """A question about a caption, its choices and the right one; other keys are kept."""

    question: str = Field(min_length=1)
    choices: tuple[str, ...] = Field(min_length=1)
    answer: str
    element_type: str
    element: str | None = None

    @model_validator(mode="after")
    def _answerable(self) -> Question:
        if self.answer not in self.choices:
            raise ValueError(f"answer: got {self.answer!r}, wanted one of the choices {', '.join(self.choices)}")
        return self


def read_captions(path: Path) -> tuple[Caption, ...]:
    """The captions of a file such as tifa_v1.0_text_inputs.json, in its order.

    Raises:
        InputError: there is no such file, or an entry is no caption.
    """
    return tuple(parse(Caption, value, f"{path}, entry {n}") for n, value in enumerate(_entries(path)))


def read_questions(path: Path) -> tuple[Question, ...]:
    """The questions of a file such as tifa_v1.0_question_answers.json, in its order.

    Raises:
        InputError: there is no such file, or an entry is no question.
    """
    return tuple(parse(Question, value, f"{path}, entry {n}") for n, value in enumerate(_entries(path)))


def read_image_paths(path: Path) -> dict[str, Path]:
    """The map {caption's id: image file}; relative files are beside the map.

    Raises:
        InputError: there is no such file, or it is no such map.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise InputError(f"{path}: got no map, wanted {{id: image file}}")
    return {key: Path(path).parent / name for key, name in value.items()}


def write_image_paths(path: Path, images: Mapping[str, Path]) -> None:
    """Writes the map, files relative to it where they lie below its folder."""
    folder = Path(path).parent.resolve()

    def shown(file: Path) -> str:
        whole = Path(file).resolve()
        return (whole.relative_to(folder) if whole.is_relative_to(folder) else whole).as_posix()

    write_json(path, {key: shown(file) for key, file in images.items()})


def _entries(path: Path) -> list[Any]:
    value = read_json(path)
    if not isinstance(value, list) or not value:
        raise InputError(f"{path}: got no list of entries, wanted TIFA's captions or questions")
    return value
