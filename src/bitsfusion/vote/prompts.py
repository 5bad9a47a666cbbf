"""Which category and challenge a prompt belongs to, from PartiPrompts' TSV or a file of its form."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_lines


@dataclass(frozen=True)
class Topic:
    """PartiPrompts' two labels of a prompt; empty where they are not known."""

    category: str = ""
    challenge: str = ""


def read_topics(path: Path) -> Mapping[str, Topic]:
    """Prompt -> topic of a TSV with the columns Prompt, Category and Challenge (PartiPrompts: 1632 rows and a Note).

    Raises:
        InputError: there is no such file, a column is missing, a row has no prompt, or there is none at all.
    """
    lines = [line for line in read_lines(path, "a TSV of prompts") if line.strip()]
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    topics: dict[str, Topic] = {}
    for number, row in enumerate(rows, 2):
        prompt, category, challenge = (row.get(name) for name in ("Prompt", "Category", "Challenge"))
        if not prompt or category is None or challenge is None:
            raise InputError(
                f"{path}, row {number}: wanted the columns Prompt, Category and Challenge, got {lines[0]!r}"
            )
        topics[prompt.strip()] = Topic(category.strip(), challenge.strip())
    if not topics:
        raise InputError(f"{path}: got no prompts, wanted one a row")
    return topics
