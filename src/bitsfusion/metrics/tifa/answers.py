"""Answers to questions about images, by visual question answering models of transformers."""

from __future__ import annotations

from typing import Any, Protocol

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

from bitsfusion.errors import InputError

Image = npt.NDArray[np.uint8]

MAX_LENGTH = 50
"""Tokens of an answer that is generated, at most."""
KINDS = {
    "blip": (BlipForQuestionAnswering, BlipImageProcessorPil),
    "vilt": (ViltForQuestionAnswering, ViltImageProcessorPil),
}


class Answerer(Protocol):
    """Answers in its own words; `name` is what results record."""

    @property
    def name(self) -> str:
        """The model."""

    def answer(self, image: Image, question: str) -> str:
        """The answer to `question` about `image` ([h, w, 3] uint8)."""


class TransformersAnswerer:
    """BLIP, which generates its answer, or ViLT, which chooses among those it was trained on.

    Differs from the paper: published TIFA v1.0 scores are mPLUG-large's, which transformers does not have. BLIP and
    ViLT are among the models that its authors compare (Salesforce/blip-vqa-capfilt-large,
    dandelin/vilt-b32-finetuned-vqa); scores by different models are not comparable.
    """

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, name: str) -> None:
        self.model = model.eval()
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self._name = name

    @classmethod
    def from_pretrained(cls, source: str, device: str = "cpu") -> TransformersAnswerer:
        """From a folder or hub id that holds one of `KINDS`.

        Raises:
            InputError: it does not.
        """
        try:
            kind = AutoConfig.from_pretrained(source).model_type
            if kind not in KINDS:
                raise ValueError(f"a model of type {kind}")
            model_class, processor_class = KINDS[kind]
            model = model_class.from_pretrained(source)
            image_processor = processor_class.from_pretrained(source)
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            wanted = f"wanted a model for visual question answering ({', '.join(KINDS)})"
            raise InputError(f"TIFA: got {source}, {wanted}: {reason}") from error
        return cls(model.to(torch.device(device)), image_processor, tokenizer, source)

    @property
    def name(self) -> str:
        """The checkpoint."""
        return self._name

    @torch.no_grad()
    def answer(self, image: Image, question: str) -> str:
        """Generated greedily by BLIP; the likeliest of ViLT's answers."""
        pixels = self.image_processor(images=[image], input_data_format="channels_last", return_tensors="pt")
        text = self.tokenizer([question], truncation=True, return_token_type_ids=False, return_tensors="pt")
        inputs = {name: value.to(self.model.device) for name, value in {**pixels, **text}.items()}
        if self.model.config.model_type == "vilt":
            chosen = int(self.model(**inputs).logits[0].argmax())
            return str(self.model.config.id2label[chosen])
        tokens = self.model.generate(**inputs, max_length=MAX_LENGTH)
        return str(self.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]).strip()
