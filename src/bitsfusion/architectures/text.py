"""transformers' CLIP text encoders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.layers import LayerRole

_ENDS = re.compile(r"(^|\.)(embeddings\.position_embedding|text_projection)$")
_PREFIX = "text_model."


@dataclass(frozen=True)
class TextEncoder(Architecture):
    """Position embedding and final projection, both small, are kept at 8 bits."""

    def role(self, name: str) -> LayerRole:
        return LayerRole.FIRST_LAST if _ENDS.search(name) else LayerRole.QUANTIZED

    def stored_names(self, model: Any, stored: Mapping[str, object]) -> dict[str, str]:
        """transformers 5 has left the prefix out of CLIPTextModel; published files have it."""
        known = model.state_dict().keys()
        return {_name(name, known): name for name in stored}


def _name(name: str, known: Any) -> str:
    ways = (name, name.removeprefix(_PREFIX), _PREFIX + name)
    return next((way for way in ways if way in known), name)


TEXT_ENCODERS = tuple(
    TextEncoder(name, "text encoder", "transformers", "text_encoder", ("Linear", "Embedding"))
    for name in ("CLIPTextModel", "CLIPTextModelWithProjection")
)
