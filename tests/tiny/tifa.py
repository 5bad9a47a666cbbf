"""BLIP, ViLT, BERT and MPNet models of random weights, saved in folders as on the hub, small enough for a test."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizer,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
)

SENTENCE = "is this a cat dog the of what color red blue green yes no how many are there two pale light ?"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SENTENCE.split()]
VOCABULARY = {token: index for index, token in enumerate(TOKENS)}
LABELS = dict(enumerate(["yes", "no", "red", "blue", "green", "cat", "dog", "two"]))
TEXT = dict(
    vocab_size=len(VOCABULARY) + 2,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)


def build_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab=VOCABULARY, model_max_length=16)


def _spread(model: torch.nn.Module) -> None:
    """Larger weights than a fresh model's: its answers depend on what it is shown."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def save_blip(folder: Path) -> Path:
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    special = dict(bos_token_id=len(VOCABULARY), eos_token_id=3, sep_token_id=3, pad_token_id=0)
    config = BlipConfig(
        text_config=TEXT | special | dict(encoder_hidden_size=16, projection_dim=16, max_position_embeddings=64),
        vision_config=vision | dict(image_size=16, patch_size=8),
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = BlipForQuestionAnswering(config)
    _spread(model)
    processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    for part in (model, build_tokenizer(), processor):
        part.save_pretrained(folder)
    return folder


def save_vilt(folder: Path) -> Path:
    torch.manual_seed(0)
    labels = dict(id2label=LABELS, label2id={name: index for index, name in LABELS.items()})
    model = ViltForQuestionAnswering(
        ViltConfig(**TEXT, **labels, image_size=32, patch_size=8, modality_type_vocab_size=2)
    )
    _spread(model)
    for part in (model, build_tokenizer(), ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8)):
        part.save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    for part in (BertModel(BertConfig(**TEXT)), build_tokenizer()):
        part.save_pretrained(folder)
    return folder


def save_mpnet(folder: Path) -> Path:
    """A tiny model of the kind of the official sentence encoder."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *SENTENCE.split()]
    special = dict(bos_token_id=0, pad_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model = MPNetModel(MPNetConfig(**TEXT | special | dict(vocab_size=len(tokens))))
    tokenizer = MPNetTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=14)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder
