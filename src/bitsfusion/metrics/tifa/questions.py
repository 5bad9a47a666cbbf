"""An entry of TIFA's files: a caption, a question about it, and the question with a model's answer.

Entries may have more keys than these (coco_val_id); they are kept and written again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

CaptionId = Annotated[str, Field(coerce_numbers_to_str=True, min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    def fields(self) -> dict[str, Any]:
        """The entry as the file has it: no key that it did not have."""
        return self.model_dump(mode="json", exclude_unset=True)


class TifaCaption(_Entry):
    """A text to generate an image from."""

    id: CaptionId
    caption: str


class TifaQuestion(_Entry):
    """A question about the image of caption `id`.

    Fields:
        choices: the answers to choose from; without any, the model's own words are compared with `answer`.
        element_type: what is asked for: object, animal/human, color, counting and so on.
        element: the words of the caption that the question is about.
    """

    id: CaptionId
    caption: str
    question: str = Field(min_length=1)
    choices: tuple[str, ...] | None = None
    answer: str
    element_type: str
    element: str | None = None

    def answered(self, free_form: str, choice: str) -> AnsweredQuestion:
        """The question with a model's own words and the choice that they stand for."""
        verdict = {"free_form_vqa": free_form, "multiple_choice_vqa": choice, "scores": int(choice == self.answer)}
        return AnsweredQuestion.model_validate(self.fields() | verdict)


class AnsweredQuestion(TifaQuestion):
    """An entry of a result's `question_details`.

    Fields:
        free_form_vqa: the model's own words.
        multiple_choice_vqa: the choice that they stand for.
        scores: 1 if that is the answer, else 0.
    """

    free_form_vqa: str
    multiple_choice_vqa: str
    scores: Literal[0, 1]
