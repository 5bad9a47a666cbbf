"""TIFA's numbers: the share of a caption's questions that are answered right, averaged over captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from bitsfusion.errors import InputError
from bitsfusion.io.schema import Checked
from bitsfusion.metrics.tifa.matcher import ChoiceMatcher, matched
from bitsfusion.metrics.tifa.questions import AnsweredQuestion, TifaQuestion
from bitsfusion.metrics.tifa.vqa import VqaModel


class TifaScores(Checked):
    """What the official result file holds, under its names.

    Fields:
        tifa_average: the mean of `caption_scores`.
        tifa_stdev: their sample standard deviation (divided by n - 1); None for a single caption.
        accuracy_by_type: {element type: share of its questions answered right}, every question counting the same.
        question_details: {caption id: {question: the entry with its answer}}.
        caption_scores: {caption id: share of its questions answered right}: what bootstrap intervals resample.
    """

    tifa_average: float
    tifa_stdev: float | None
    accuracy_by_type: dict[str, float]
    question_details: dict[str, dict[str, AnsweredQuestion]]
    caption_scores: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def from_answers(cls, answers: Iterable[AnsweredQuestion]) -> TifaScores:
        """The numbers from answered questions.

        A question that a caption has twice counts twice; as in the official files its details stand once, those of
        the first entry with the last answer.

        Raises:
            InputError: there is no answer.
        """
        by_caption: dict[str, list[int]] = {}
        by_type: dict[str, list[int]] = {}
        details: dict[str, dict[str, AnsweredQuestion]] = {}
        for entry in answers:
            by_caption.setdefault(entry.id, []).append(entry.scores)
            by_type.setdefault(entry.element_type, []).append(entry.scores)
            shown = details.setdefault(entry.id, {})
            verdict = {name: getattr(entry, name) for name in ("free_form_vqa", "multiple_choice_vqa", "scores")}
            shown[entry.question] = shown.get(entry.question, entry).model_copy(update=verdict)
        if not by_caption:
            raise InputError("TIFA: got no answered question, wanted one or more")
        captions = {name: float(mean(scores)) for name, scores in by_caption.items()}
        return cls(
            tifa_average=mean(captions.values()),
            tifa_stdev=stdev(captions.values()) if len(captions) > 1 else None,
            accuracy_by_type={name: float(mean(scores)) for name, scores in by_type.items()},
            question_details=details,
            caption_scores=captions,
        )

    def to_official(self) -> dict[str, Any]:
        """The content of the official result file, as plain values; of an entry no key that it did not have."""
        return self.model_dump(mode="json", exclude_unset=True)


def answered(
    images: npt.NDArray[np.uint8], questions: Sequence[TifaQuestion], vqa: VqaModel, matcher: ChoiceMatcher
) -> list[AnsweredQuestion]:
    """Each of `questions` with the answer from its own image ([n, h, w, 3] uint8), in one batch.

    Raises:
        InputError: the model gives another number of answers.
    """
    choices = [entry.choices or () for entry in questions]
    words = vqa.answer(images, [entry.question for entry in questions], choices)
    if len(words) != len(questions):
        raise InputError(f"TIFA: got {len(words)} answers of {vqa.name} to {len(questions)} questions")
    chosen = matched(words, choices, matcher)
    return [entry.answered(word, choice) for entry, word, choice in zip(questions, words, chosen, strict=True)]
