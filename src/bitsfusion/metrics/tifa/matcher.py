"""From a model's own words to one of a question's choices."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from bitsfusion.metrics.checkpoint import load_checkpoint

OFFICIAL_ENCODER = "sentence-transformers/all-mpnet-base-v2"
"""The sentence encoder of published TIFA scores."""


class ChoiceMatcher(Protocol):
    """Finds the choice that an answer is nearest to; `name` is what results record."""

    @property
    def name(self) -> str:
        """The model."""

    def nearest(self, answers: Sequence[str], choices: Sequence[Sequence[str]]) -> list[str]:
        """For each answer one of its choices, of which there is at least one."""


def matched(answers: Sequence[str], choices: Sequence[Sequence[str]], matcher: ChoiceMatcher) -> list[str]:
    """The choice that each answer stands for: the answer itself where it is one, else the nearest by `matcher`.

    Letter case counts, as it does officially. An answer to a question without choices stands for itself; the official
    code has no such questions.
    """
    open_ = [place for place, answer in enumerate(answers) if choices[place] and answer not in choices[place]]
    chosen = list(answers)
    nearest = matcher.nearest([answers[place] for place in open_], [choices[place] for place in open_]) if open_ else []
    for place, choice in zip(open_, nearest, strict=True):
        chosen[place] = choice
    return chosen


class SentenceMatcher:
    """Cosine between sentence embeddings: the mean of the encoder's last states over an answer's tokens.

    Of equally near choices the first one. The pooling is the official one, whatever a checkpoint's own is.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, batch_size: int = 64) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls, source: str | PathLike[str] = OFFICIAL_ENCODER, device: str = "cpu", batch_size: int = 64
    ) -> SentenceMatcher:
        """A matcher from a folder, or hub id, of a text encoder (BERT, MPNet) with its tokenizer.

        Raises:
            InputError: it holds none, or not all of its weights.
        """
        model, tokenizer = load_checkpoint(
            source,
            AutoModel,
            AutoTokenizer,
            what="TIFA's sentence encoder",
            wanted="a text encoder with its tokenizer",
            unused="pooler.",
        )
        return cls(model.to(torch.device(device)), tokenizer, str(source), batch_size)

    def nearest(self, answers: Sequence[str], choices: Sequence[Sequence[str]]) -> list[str]:
        """For each answer the choice with the largest cosine."""
        texts = list(dict.fromkeys([*answers, *(choice for group in choices for choice in group)]))
        vectors = dict(zip(texts, self.embed(texts), strict=True))
        cosines = [
            torch.stack([vectors[choice] for choice in group]) @ vectors[answer]
            for answer, group in zip(answers, choices, strict=True)
        ]
        return [group[int(row.argmax())] for row, group in zip(cosines, choices, strict=True)]

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors of `texts`, cut to the tokenizer's length: [n, width] float32, on the CPU."""
        vectors = []
        for start in range(0, len(texts), self.batch_size):
            batch = list(texts[start : start + self.batch_size])
            tokens = self.tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            states = self.model(**tokens).last_hidden_state.float()
            weights = tokens["attention_mask"].unsqueeze(2).float()
            vectors.append(functional.normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=1))
        return torch.cat(vectors).cpu() if vectors else torch.zeros(0, self.model.config.hidden_size)
