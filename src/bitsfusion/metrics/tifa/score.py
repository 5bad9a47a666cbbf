"""TIFA's score, and its result file as the published evaluator (Yushi-Hu/tifa) writes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt

from bitsfusion.errors import InputError
from bitsfusion.metrics.tifa.answers import Answerer
from bitsfusion.metrics.tifa.choices import ChoiceMatcher
from bitsfusion.metrics.tifa.files import Question


@dataclass(frozen=True)
class Answered:
    """A question with the model's answer in its own words and the choice it stands for."""

    question: Question
    free_form: str
    choice: str

    @property
    def score(self) -> int:
        """1 where the choice is the right answer, else 0."""
        return int(self.choice == self.question.answer)

    def details(self) -> dict[str, Any]:
        """The question's entry of the result file."""
        entry = self.question.model_dump(mode="json", exclude_unset=True)
        return entry | {
            "free_form_vqa": self.free_form,
            "multiple_choice_vqa": self.choice,
            "scores": self.score,
        }


@dataclass(frozen=True)
class Examiner:
    """The model that answers and the one that maps answers to choices."""

    answerer: Answerer
    matcher: ChoiceMatcher

    def settings(self) -> dict[str, Any]:
        """What a score depends on beside images and questions, as JSON."""
        return {"vqa": self.answerer.name, "choices": self.matcher.name}

    def ask(self, image: npt.NDArray[np.uint8], questions: Iterable[Question]) -> list[Answered]:
        """The answers about one image ([h, w, 3] uint8)."""
        found = []
        for question in questions:
            answer = self.answerer.answer(image, question.question)
            found.append(Answered(question, answer, self.matcher.choose(answer, question.choices)))
        return found


def tifa_result(answers: Iterable[Answered]) -> dict[str, Any]:
    """The official result: {tifa_average, tifa_stdev, accuracy_by_type, question_details, caption_scores}.

    The average is over captions of the average over each caption's questions; the standard deviation (of a sample) is
    of the captions' averages, None for a single caption, where the published evaluator ends with an error. Accuracy
    by type is over questions. Of a question that is asked twice of a caption both answers count and the later one's
    details stay, as published.

    Raises:
        InputError: there is no answer.
    """
    by_caption: dict[str, list[int]] = {}
    by_type: dict[str, list[int]] = {}
    details: dict[str, dict[str, Any]] = {}
    for answered in answers:
        question = answered.question
        by_caption.setdefault(question.id, []).append(answered.score)
        by_type.setdefault(question.element_type, []).append(answered.score)
        details.setdefault(question.id, {})[question.question] = answered.details()
    if not by_caption:
        raise InputError("TIFA: got no answers, wanted those of at least one caption")
    captions = {name: mean(scores) for name, scores in by_caption.items()}
    averages = list(captions.values())
    return {
        "tifa_average": mean(averages),
        "tifa_stdev": stdev(averages) if len(averages) > 1 else None,
        "accuracy_by_type": {name: mean(scores) for name, scores in by_type.items()},
        "question_details": details,
        "caption_scores": captions,
    }
