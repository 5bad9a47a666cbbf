"""transformers' text encoders: CLIP, T5 and UMT5, Gemma 2, Qwen3, and Qwen2.5-VL with its image tower."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bitsfusion.architectures.base import Architecture, without_steering
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.shapes import Shapes, Tensors, anything, checked, few, need, only, size

_ENDS = re.compile(r"(^|\.)(embeddings\.position_embedding|text_projection|relative_attention_bias|merger\.mlp\.\d+)$")
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
    """Position embeddings and final projections, all small, are kept at 8 bits.

    Fields:
        renamed: patterns of names in files, and what the class of today has in their place.
    """

    renamed: tuple[tuple[str, str], ...] = ()

    def role(self, name: str) -> LayerRole:
        return LayerRole.FIRST_LAST if _ENDS.search(name) else LayerRole.QUANTIZED

    def _shapes(self, config: Mapping[str, Any]) -> Shapes:
        need(self.name in ("CLIPTextModel", "CLIPTextModelWithProjection"))
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

    def tied(self, model: Any) -> dict[str, str]:
        """As the class says of its weights, where its config does not say otherwise."""
        keys: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
        owners = {target.rpartition(".")[0]: source.rpartition(".")[0] for target, source in keys.items()}
        return {target: source for target, source in owners.items() if target != source}

    def stored_names(self, model: Any, stored: Mapping[str, object]) -> dict[str, str]:
        """transformers 5 has left the prefix out of CLIPTextModel; published files have it."""
        return self.current_names(model.state_dict().keys(), stored.keys())

    def current_names(self, known: Collection[str], stored: Collection[str]) -> dict[str, str]:
        return {self._name(name, known): name for name in stored}

    def _name(self, name: str, known: Collection[str]) -> str:
        ways = (name, name.removeprefix(_PREFIX), _PREFIX + name, *self._moved(name))
        return next((way for way in ways if way in known), name)

    def _moved(self, name: str) -> list[str]:
        return [re.sub(pattern, new, name) for pattern, new in self.renamed if re.match(pattern, name)]


def _encoder(name: str, *renamed: tuple[str, str]) -> TextEncoder:
    return TextEncoder(name, "text encoder", "transformers", "text_encoder", ("Linear", "Embedding"), renamed)


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
