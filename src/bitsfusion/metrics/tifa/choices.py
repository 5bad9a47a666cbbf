"""The choice that is meant by an answer in free words: the nearest one to a sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from bitsfusion.errors import InputError

OFFICIAL_ENCODER = "sentence-transformers/all-mpnet-base-v2"
"""The published evaluator's encoder."""


class ChoiceMatcher(Protocol):
    """Maps answers to choices; `name` is what results record."""

    @property
    def name(self) -> str:
        """The model."""

    def choose(self, answer: str, choices: Sequence[str]) -> str:
        """The one of `choices` that `answer` means."""


class SentenceMatcher:
    """A text encoder of transformers: the mean of its last layer over the tokens, as a unit vector."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._name = name

    @classmethod
    def from_pretrained(cls, source: str = OFFICIAL_ENCODER, device: str = "cpu") -> SentenceMatcher:
        """From a folder or hub id.

        Raises:
            InputError: it holds no text encoder with its tokenizer.
        """
        try:
            model = AutoModel.from_pretrained(source)
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"TIFA: got {source}, wanted a text encoder with its tokenizer ({reason})") from error
        return cls(model.to(torch.device(device)), tokenizer, source)

    @property
    def name(self) -> str:
        """The checkpoint."""
        return self._name

    def choose(self, answer: str, choices: Sequence[str]) -> str:
        """`answer` itself where it is a choice, otherwise the choice with the largest cosine; the first of equals."""
        if answer in choices:
            return answer
        vectors = self.embed([answer, *choices])
        return choices[int((vectors[1:] @ vectors[0]).argmax())]

    @torch.no_grad()
    def embed(self, sentences: Sequence[str]) -> torch.Tensor:
        """Unit vectors: [n, width] float32."""
        tokens = self.tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        states = self.model(**tokens).last_hidden_state.float()
        here = tokens["attention_mask"][..., None].to(states.dtype)
        return functional.normalize((states * here).sum(1) / here.sum(1).clamp(min=1e-9), dim=1)
