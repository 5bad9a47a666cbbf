"""transformers' text encoders: CLIP, T5 and UMT5, Gemma 2, Qwen3, and Qwen2.5-VL with its image tower."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.layers import LayerRole

_ENDS = re.compile(r"(^|\.)(embeddings\.position_embedding|text_projection|relative_attention_bias|merger\.mlp\.\d+)$")
_PREFIX = "text_model."


@dataclass(frozen=True)
class TextEncoder(Architecture):
    """Position embeddings and final projections, all small, are kept at 8 bits.

    Fields:
        renamed: patterns of names in files, and what the class of today has in their place.
    """

    renamed: tuple[tuple[str, str], ...] = ()

    def role(self, name: str) -> LayerRole:
        return LayerRole.FIRST_LAST if _ENDS.search(name) else LayerRole.QUANTIZED

    def tied(self, model: Any) -> dict[str, str]:
        """As the class says of its weights, where its config does not say otherwise."""
        keys: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
        owners = {target.rpartition(".")[0]: source.rpartition(".")[0] for target, source in keys.items()}
        return {target: source for target, source in owners.items() if target != source}

    def stored_names(self, model: Any, stored: Mapping[str, object]) -> dict[str, str]:
        """transformers 5 has left the prefix out of CLIPTextModel; published files have it."""
        known = model.state_dict().keys()
        return {self._name(name, known): name for name in stored}

    def _name(self, name: str, known: Any) -> str:
        ways = (name, name.removeprefix(_PREFIX), _PREFIX + name, *self._moved(name))
        return next((way for way in ways if way in known), name)

    def _moved(self, name: str) -> list[str]:
        return [re.sub(pattern, new, name) for pattern, new in self.renamed if re.match(pattern, name)]


def _encoder(name: str, *renamed: tuple[str, str]) -> TextEncoder:
    return TextEncoder(name, "text encoder", "transformers", "text_encoder", (nn.Linear, nn.Embedding), renamed)


TEXT_ENCODERS = (
    _encoder("CLIPTextModel"),
    _encoder("CLIPTextModelWithProjection"),
    _encoder("T5EncoderModel"),
    _encoder("UMT5EncoderModel"),
    _encoder("Gemma2Model", ("model\\.", "")),
    _encoder("Qwen3Model", ("model\\.", "")),
    _encoder("Qwen3ForCausalLM"),
    _encoder(
        "Qwen2_5_VLForConditionalGeneration",
        ("visual\\.", "model.visual."),
        ("model\\.", "model.language_model."),
    ),
)
