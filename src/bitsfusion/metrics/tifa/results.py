"""The official result file of TIFA."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from bitsfusion.io.schema import parse
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.metrics.tifa.scores import TifaScores


def write_result(path: Path, scores: TifaScores) -> None:
    """Writes `scores` as the official result file, whole or not at all."""
    write_json(path, scores.to_official())


def read_result(path: Path) -> TifaScores:
    """An official result file. Where it lacks the scores of captions, they are taken from the questions' details.

    Raises:
        InputError: it is none.
    """
    scores = parse(TifaScores, read_json(path), str(path))
    if scores.caption_scores:
        return scores
    captions = {
        name: float(mean(entry.scores for entry in details.values()))
        for name, details in scores.question_details.items()
        if details
    }
    return scores.model_copy(update={"caption_scores": captions})
