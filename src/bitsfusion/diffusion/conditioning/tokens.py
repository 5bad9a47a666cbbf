"""Captions as token ids, and what names a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitsfusion.io.hashes import sha256_json


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token ids of `captions`, padded or cut to the tokenizer's length: [n, tokens] int64 on the CPU."""
    if not captions:
        return torch.empty((0, tokenizer.model_max_length), dtype=torch.int64)
    encoded = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = encoded.input_ids
    return ids


def captions_cut(tokenizer: Any, captions: Sequence[str]) -> int:
    """How many captions have more tokens than are kept."""
    if not captions:
        return 0
    lengths = [len(ids) for ids in tokenizer(list(captions), verbose=False).input_ids]
    return sum(length > tokenizer.model_max_length for length in lengths)


def tokenizer_sha256(tokenizer: Any) -> str:
    """The SHA-256 of vocabulary, merges, normalization and length, in hex; padding is the caller's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = sorted(tokenizer.get_vocab().items())
    else:
        content = json.loads(backend.to_str())
        content = {name: value for name, value in content.items() if name not in ("padding", "truncation")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256_json([content, special, tokenizer.model_max_length])
