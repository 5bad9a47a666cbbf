"""What answers TIFA's questions from an image: BLIP or ViLT of transformers, or anything of the same form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from os import PathLike
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
)

from bitsfusion.errors import InputError, reason
from bitsfusion.metrics.checkpoint import load_checkpoint

OFFICIAL = "mplug-large (modelscope)"
"""The model of published TIFA scores; no other one gives their numbers."""
LONGEST_ANSWER = 50
"""Tokens of an answer, its start among them, after which the official code stops a generating model."""


class VqaModel(Protocol):
    """Answers questions about images; `name` is what results record."""

    @property
    def name(self) -> str:
        """The model."""

    def answer(
        self, images: npt.NDArray[np.uint8], questions: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> list[str]:
        """In the model's own words, one answer for each image (uint8 [n, h, w, 3]) and its question.

        `choices` are a question's possible answers, none where they are not known: a model that reads text may be
        shown them, others leave them alone.
        """


class _TransformersVqa(ABC):
    """A model, its tokenizer and its image processor, on the model's device."""

    kind: str
    model_type: str
    model_class: Any
    processor_class: Any

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, name: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.name = name

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], device: str = "cpu") -> Self:
        """From a folder, or hub id.

        Raises:
            InputError: it holds no such model.
        """
        found = _model_type(source)
        if found != cls.model_type:
            raise InputError(f"TIFA's VQA model: got {source} of type {found!r}, wanted {cls.model_type!r}")
        model, tokenizer, image_processor = load_checkpoint(
            source,
            cls.model_class,
            AutoTokenizer,
            cls.processor_class,
            what="TIFA's VQA model",
            wanted=f"a {cls.model_class.__name__} with its tokenizer and image processor",
        )
        return cls(model.to(torch.device(device)), tokenizer, image_processor, str(source))

    @torch.no_grad()
    def answer(
        self, images: npt.NDArray[np.uint8], questions: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> list[str]:
        """One answer for each image (uint8 [n, h, w, 3]) and its question, in one batch; `choices` are not read.

        Raises:
            InputError: the images are not uint8 [n, h, w, 3], or there is not one question for each.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise InputError(f"{self.kind}: got images {images.dtype} {list(images.shape)}, wanted uint8 [n, h, w, 3]")
        if len(images) != len(questions):
            raise InputError(f"{self.kind}: got {len(images)} images and {len(questions)} questions, wanted as many")
        if not len(images):
            return []
        pixels = self.image_processor(images=list(images), input_data_format="channels_last", return_tensors="pt")
        length = self.model.config.get_text_config().max_position_embeddings
        tokens = self.tokenizer(
            list(questions), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.model.device)
        return self._answer(pixels["pixel_values"].to(self.model.device, self.model.dtype), tokens)

    @abstractmethod
    def _answer(self, pixels: torch.Tensor, tokens: Any) -> list[str]:
        """The answers of one batch: `pixels` [n, 3, h, w], `tokens` padded to the longest question."""


class BlipVqa(_TransformersVqa):
    """BLIP: reads image and question, generates the answer word by word, the likeliest each time.

    Such as Salesforce/blip-vqa-capfilt-large.
    """

    kind = "BLIP"
    model_type = "blip"
    model_class = BlipForQuestionAnswering
    processor_class = BlipImageProcessorPil

    def _answer(self, pixels: torch.Tensor, tokens: Any) -> list[str]:
        # The decoder of BLIP looks at the padding of shorter questions (generate passes no mask, and transformers 5.23
        # drops one that is given): only questions of one length go together, so that the batch changes no answer.
        answers = [""] * len(pixels)
        lengths = tokens["attention_mask"].sum(1)
        for length in lengths.unique().tolist():
            rows = lengths == length
            mask = tokens["attention_mask"][rows]
            words = self.model.generate(
                pixel_values=pixels[rows],
                input_ids=tokens["input_ids"][rows][mask.bool()].view(-1, length),
                attention_mask=mask[mask.bool()].view(-1, length),
                max_length=LONGEST_ANSWER,
                do_sample=False,
            )
            for row, text in zip(rows.nonzero()[:, 0].tolist(), self._texts(words), strict=True):
                answers[row] = text
        return answers

    def _texts(self, words: torch.Tensor) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(words, skip_special_tokens=True)
        return texts


class ViltVqa(_TransformersVqa):
    """ViLT: the likeliest of the answers that it was trained on (its config's labels).

    Such as dandelin/vilt-b32-finetuned-vqa.
    """

    kind = "ViLT"
    model_type = "vilt"
    model_class = ViltForQuestionAnswering
    processor_class = ViltImageProcessorPil

    def _answer(self, pixels: torch.Tensor, tokens: Any) -> list[str]:
        # ViLT draws the order of its patches from torch's CPU generator: put back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            logits = self.model(pixel_values=pixels, **tokens).logits
        labels = self.model.config.id2label
        return [str(labels[int(index)]) for index in logits.argmax(1)]


def vqa_model(source: str | PathLike[str], device: str = "cpu") -> VqaModel:
    """The model in a folder, or of a hub id, by its config: BLIP or ViLT.

    Raises:
        InputError: it holds neither.
    """
    kind = _model_type(source)
    if kind not in ("blip", "vilt"):
        raise InputError(f"TIFA's VQA model: got {source} of type {kind!r}, wanted 'blip' or 'vilt'")
    return BlipVqa.from_pretrained(source, device) if kind == "blip" else ViltVqa.from_pretrained(source, device)


def _model_type(source: str | PathLike[str]) -> str:
    try:
        return str(AutoConfig.from_pretrained(source).model_type)
    except (OSError, ValueError) as error:
        raise InputError(f"TIFA's VQA model: got {source}, wanted a BLIP or ViLT model ({reason(error)})") from error
