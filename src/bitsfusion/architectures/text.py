"""transformers' CLIP text encoders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bitsfusion.architectures.base import Architecture, without_steering
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.shapes import Shapes, Tensors, anything, checked, few, need, only, size

_ENDS = re.compile(r"(^|\.)(embeddings\.position_embedding|text_projection)$")
_PREFIX = "text_model."


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


_KNOWN: Mapping[str, Any] = {
    "architectures": (None, anything),
    "model_type": ("clip_text_model", only("clip_text_model")),
    "transformers_version": ("", anything),
    "dtype": (None, only(None, "float16", "bfloat16", "float32")),
    "torch_dtype": (None, only(None, "float16", "bfloat16", "float32")),
    "hidden_act": ("quick_gelu", only("quick_gelu", "gelu")),
    "layer_norm_eps": (1e-5, lambda value: type(value) is float),
    "initializer_range": (0.02, lambda value: type(value) is float),
    "initializer_factor": (1.0, lambda value: type(value) is float),
    "attention_dropout": (0.0, only(0.0)),
    "dropout": (0.0, only(0.0)),
    "pad_token_id": (1, only(0, 1)),
    "bos_token_id": (49406, _whole),
    "eos_token_id": (49407, _whole),
    "vocab_size": (49408, size),
    "hidden_size": (512, size),
    "intermediate_size": (2048, size),
    "projection_dim": (512, lambda value: value is None or size(value)),
    "num_hidden_layers": (12, few),
    "num_attention_heads": (8, size),
    "max_position_embeddings": (77, size),
}


@dataclass(frozen=True)
class TextEncoder(Architecture):
    """Position embedding and final projection, both small, are kept at 8 bits."""

    def role(self, name: str) -> LayerRole:
        return LayerRole.FIRST_LAST if _ENDS.search(name) else LayerRole.QUANTIZED

    def _shapes(self, config: Mapping[str, Any]) -> Shapes:
        values = checked(without_steering(config), _KNOWN)
        width, inner = values["hidden_size"], values["intermediate_size"]
        need(width % values["num_attention_heads"] == 0 and values["architectures"] in (None, [self.name]))
        projected = self.name.endswith("WithProjection")
        start, found = _PREFIX if projected else "", Tensors()
        found.embedding(f"{start}embeddings.token_embedding", values["vocab_size"], width)
        found.embedding(f"{start}embeddings.position_embedding", values["max_position_embeddings"], width)
        for layer in range(values["num_hidden_layers"]):
            name = f"{start}encoder.layers.{layer}"
            for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                found.linear(f"{name}.self_attn.{part}", width, width)
            found.norm(f"{name}.layer_norm1", width)
            found.linear(f"{name}.mlp.fc1", width, inner)
            found.linear(f"{name}.mlp.fc2", inner, width)
            found.norm(f"{name}.layer_norm2", width)
        found.norm(f"{start}final_layer_norm", width)
        if projected:
            need(values["projection_dim"] is not None)
            found.linear("text_projection", width, values["projection_dim"], bias=False)
        return found.found

    def stored_names(self, model: Any, stored: Mapping[str, object]) -> dict[str, str]:
        """transformers 5 has left the prefix out of CLIPTextModel; published files have it."""
        return self.current_names(model.state_dict().keys(), stored.keys())

    def current_names(self, known: Collection[str], stored: Collection[str]) -> dict[str, str]:
        return {_name(name, known): name for name in stored}


def _name(name: str, known: Collection[str]) -> str:
    ways = (name, name.removeprefix(_PREFIX), _PREFIX + name)
    return next((way for way in ways if way in known), name)


TEXT_ENCODERS = tuple(
    TextEncoder(name, "text encoder", "transformers", "text_encoder", ("Linear", "Embedding"))
    for name in ("CLIPTextModel", "CLIPTextModelWithProjection")
)
