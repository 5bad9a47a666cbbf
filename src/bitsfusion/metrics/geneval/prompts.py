"""GenEval's prompts as they are published: a line of JSON each, with what the image has to show and must not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from bitsfusion.errors import InputError
from bitsfusion.io.schema import Checked, parse
from bitsfusion.io.texts import json_lines

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""The colours that can be asked for, in the order in which the official reasons list them."""
RELATIONS = ("left of", "right of", "above", "below")


class _Strict(Checked):
    model_config = ConfigDict(populate_by_name=True)


class Clause(_Strict):
    """`count` objects of a class; of a colour, or standing in a relation to those of an earlier clause.

    Fields:
        position: (relation, index of the clause with the target among `include`).
    """

    class_name: str = Field(alias="class", min_length=1)
    count: PositiveInt
    color: str | None = None
    position: tuple[str, NonNegativeInt] | None = None

    @model_validator(mode="after")
    def _known(self) -> Clause:
        if self.color is not None and self.color not in COLORS:
            raise ValueError(f"color: got {self.color!r}, wanted one of {', '.join(COLORS)}")
        if self.position is not None and self.position[0] not in RELATIONS:
            raise ValueError(f"position: got {self.position[0]!r}, wanted one of {', '.join(RELATIONS)}")
        return self


class GenEvalPrompt(_Strict):
    """One line of the prompt file: every `include` clause has to hold, no `exclude` clause may."""

    tag: str
    include: tuple[Clause, ...] = ()
    exclude: tuple[Clause, ...] = ()
    prompt: str = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> GenEvalPrompt:
        if self.tag not in TASKS:
            raise ValueError(f"tag: got {self.tag!r}, wanted one of {', '.join(TASKS)}")
        for index, clause in enumerate(self.include):
            if clause.position is not None and clause.position[1] >= index:
                raise ValueError(
                    f"include.{index}: its position is to clause {clause.position[1]}, wanted an earlier one"
                )
        return self

    def metadata(self) -> dict[str, Any]:
        """The line as the file has it: no key without a value."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def read_prompts(path: Path) -> tuple[GenEvalPrompt, ...]:
    """The prompts of a `.jsonl` file in GenEval's form (evaluation_metadata.jsonl), in its order.

    Raises:
        InputError: there is no such file, it holds no prompt, or a line is none.
    """
    lines = json_lines(path, "GenEval's prompts, JSON with tag, include and prompt")
    prompts = tuple(parse(GenEvalPrompt, value, where) for where, value in lines)
    if not prompts:
        raise InputError(f"{path}: got no prompts, wanted GenEval's, one a line")
    return prompts


def is_geneval(path: Path) -> bool:
    """Whether `path` looks like GenEval's prompts: a .jsonl file whose first line has a tag and includes something."""
    if Path(path).suffix != ".jsonl":
        return False
    try:
        with open(path, encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False
    return isinstance(first, dict) and {"tag", "include"} <= first.keys()


def class_names(prompts: Sequence[GenEvalPrompt]) -> tuple[str, ...]:
    """Every class that `prompts` speak of, sorted: what a detector has to know."""
    return tuple(sorted({clause.class_name for prompt in prompts for clause in (*prompt.include, *prompt.exclude)}))
