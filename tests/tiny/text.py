"""A CLIP tokenizer of a few words, and text encoders of random weights for its tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPTS = ("red circle", "blue square", "circle", "red square", "blue circle")
WORDS = ("red", "blue", "circle", "square", "cross")
TOKENS = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def build_tokenizer(tokens: int = TOKENS) -> CLIPTokenizer:
    """Each of WORDS is one token, its letters merged from the left; other words are a token a letter."""
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    merges = []
    for word in WORDS:
        merged, *parts = [*word[:-1], f"{word[-1]}</w>"]
        for part in parts:
            merges.append((merged, part))
            merged += part
            vocabulary.append(merged)
    numbers = {token: number for number, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=tokens)


def text_config(width: int = 16) -> dict[str, Any]:
    """A text encoder of one layer, for the tokens of `build_tokenizer`."""
    return {
        "vocab_size": len(build_tokenizer()),
        "max_position_embeddings": TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }


def build_text_encoder(width: int = 16, kind: Any = CLIPTextModel, seed: int = 0, **changes: Any) -> Any:
    """States of `width` values; of class `kind`, with `changes` to its config."""
    torch.manual_seed(seed)
    return kind(CLIPTextConfig(**text_config(width) | changes)).eval()
