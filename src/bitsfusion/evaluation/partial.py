"""Judgements kept as they are made, so that a killed measurement goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from bitsfusion.evaluation.measures import Judgement
from bitsfusion.io.journal import Journal


class PartialJudgements(Journal[Judgement]):
    """The judgements of a measurement that is under way, an image each, in order."""

    def __init__(self, path: Path, identity: str) -> None:
        super().__init__(path, identity, _text, _judgement)


def _text(judgement: Judgement) -> str:
    return json.dumps(asdict(judgement))


def _judgement(line: str) -> Judgement:
    values = json.loads(line)
    return Judgement(float(values["value"]), values["record"])
