"""A CLIP tokenizer whose vocabulary is a drawn world's words."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

TEXT_LENGTH = 16


def build_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer trained until every word is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(words, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=TEXT_LENGTH
    )
    split = [word for word in words if len(tokenizer(word).input_ids) != 3]  # start, the word, end
    if split:
        raise RuntimeError(f"tokenizer: got {split[0]!r} in several tokens, wanted one a word")
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """[n, 16] int64 token ids, padded with the end token."""
    ids: torch.Tensor = tokenizer(
        list(texts), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
