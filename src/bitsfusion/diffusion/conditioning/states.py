"""Transformers' conditioning: the pipeline's own text encoders, run once a caption; their states are what is kept.

The encoders are most of what such a pipeline weighs (a T5-XXL has 4.7 B weights), so that training has none of them in
memory: rows are states, masks and pooled texts instead of token ids.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.architectures.registry import denoiser_of
from bitsfusion.diffusion.conditioning.tokens import captions_cut, tokenizer_sha256
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_json

Encode: TypeAlias = Callable[[Any, list[str], torch.device, int], dict[str, Tensor]]
"""(pipeline, captions, device, tokens) -> rows by the forward's keywords."""

_AT_ONCE = 16
_STATES = "encoder_hidden_states"


def _aura_flow(pipeline: Any, captions: list[str], device: torch.device, tokens: int) -> dict[str, Tensor]:
    found = pipeline.encode_prompt(captions, None, False, device=device, max_sequence_length=tokens)
    return {_STATES: found[0]}


def _flux(pipeline: Any, captions: list[str], device: torch.device, tokens: int) -> dict[str, Tensor]:
    states, pooled, _ = pipeline.encode_prompt(captions, None, device=device, max_sequence_length=tokens)
    return {_STATES: states, "pooled_projections": pooled}


def _flux2(pipeline: Any, captions: list[str], device: torch.device, tokens: int) -> dict[str, Tensor]:
    return {_STATES: pipeline.encode_prompt(captions, device=device, max_sequence_length=tokens)[0]}


def _sd3(pipeline: Any, captions: list[str], device: torch.device, tokens: int) -> dict[str, Tensor]:
    states, _, pooled, _ = pipeline.encode_prompt(
        captions, None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=tokens
    )
    return {_STATES: states, "pooled_projections": pooled}


def _pixart(pipeline: Any, captions: list[str], device: torch.device, tokens: int) -> dict[str, Tensor]:
    states, mask, *_ = pipeline.encode_prompt(
        captions, do_classifier_free_guidance=False, device=device, max_sequence_length=tokens
    )
    return {_STATES: states, "encoder_attention_mask": mask}


def _sana(pipeline: Any, captions: list[str], device: torch.device, tokens: int) -> dict[str, Tensor]:
    """With the instruction that the pipeline puts before every prompt but the empty one."""
    instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    states, mask, *_ = pipeline.encode_prompt(
        captions,
        do_classifier_free_guidance=False,
        device=device,
        max_sequence_length=tokens,
        complex_human_instruction=instruction if any(captions) else None,
    )
    return {_STATES: states, "encoder_attention_mask": mask}


def _z_image(pipeline: Any, captions: list[str], device: torch.device, tokens: int) -> dict[str, Tensor]:
    texts, _ = pipeline.encode_prompt(
        list(captions), device=device, do_classifier_free_guidance=False, max_sequence_length=tokens
    )
    states = torch.stack([nn.functional.pad(text, (0, 0, 0, tokens - len(text))) for text in texts])
    lengths = torch.tensor([len(text) for text in texts], device=states.device)
    return {"cap_feats": states, "cap_mask": _first(lengths, tokens)}


def _qwen_image(pipeline: Any, captions: list[str], device: torch.device, tokens: int) -> dict[str, Tensor]:
    states, mask = pipeline.encode_prompt(captions, device=device, max_sequence_length=tokens)
    missing = tokens - states.shape[1]
    lengths = torch.full((len(states),), states.shape[1], device=states.device) if mask is None else mask.sum(1)
    return {
        _STATES: nn.functional.pad(states, (0, 0, 0, missing)),
        "encoder_hidden_states_mask": _first(lengths, tokens),
    }


def _first(lengths: Tensor, tokens: int) -> Tensor:
    """[n, tokens] int64: ones in the first places of each row."""
    return (torch.arange(tokens, device=lengths.device) < lengths[:, None]).to(torch.int64)


ENCODERS: Mapping[str, Encode] = {
    "AuraFlowTransformer2DModel": _aura_flow,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "SD3Transformer2DModel": _sd3,
    "PixArtTransformer2DModel": _pixart,
    "SanaTransformer2DModel": _sana,
    "ZImageTransformer2DModel": _z_image,
    "QwenImageTransformer2DModel": _qwen_image,
}
"""Class name of the denoiser -> how its captions are encoded."""


@dataclass(frozen=True)
class StatesConditioner:
    """See `Conditioner`.

    Fields:
        pipeline: with its text encoders.
        run: how its class encodes captions.
        tokens: of a prompt, padded or cut to it.
        guidance: what a guidance-distilled model is told; None for one that takes none.
    """

    pipeline: Any
    run: Encode
    tokens: int
    guidance: float | None = None

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """None: they have run when rows are made."""
        return ()

    @property
    def sized(self) -> bool:
        return False

    def key(self) -> dict[str, Any]:
        tokenizers = {name: tokenizer_sha256(each) for name, each in _components(self.pipeline, "tokenizer").items()}
        encoders = {name: _weights_key(each) for name, each in _components(self.pipeline, "text_encoder").items()}
        pipeline = type(self.pipeline).__name__
        return {"pipeline": pipeline, "tokenizers": tokenizers, "text_encoders": encoders, "tokens": self.tokens}

    @torch.no_grad()
    def rows(self, captions: Sequence[str]) -> dict[str, Tensor]:
        device = next(iter(_components(self.pipeline, "text_encoder").values())).device
        if not captions:
            return {name: rows[:0] for name, rows in self._null.items()}
        parts = []
        for start in range(0, len(captions), _AT_ONCE):
            made = self.run(self.pipeline, list(captions[start : start + _AT_ONCE]), device, self.tokens)
            parts.append({name: _stored(rows) for name, rows in made.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def cut(self, captions: Sequence[str]) -> int:
        return max(captions_cut(each, captions) for each in _components(self.pipeline, "tokenizer").values())

    def encode(
        self,
        rows: Mapping[str, Tensor],
        latent_size: Sequence[int],
        sizes: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Conditioning:
        found = dict(rows)
        if dropped is not None:
            for name, tensor in found.items():
                null = self._null[name].to(tensor.device)
                chosen = dropped.to(tensor.device).view(-1, *[1] * (tensor.dim() - 1))
                found[name] = torch.where(chosen, null, tensor)
        return Conditioning(found | self._guidance(next(iter(found.values()))))

    def null(self, count: int, latent_size: Sequence[int]) -> Conditioning:
        found = {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self._null.items()}
        return Conditioning(found | self._guidance(next(iter(found.values()))))

    def _guidance(self, like: Tensor) -> dict[str, Tensor]:
        if self.guidance is None:
            return {}
        return {"guidance": torch.full((len(like),), self.guidance, device=like.device)}

    @cached_property
    def _null(self) -> dict[str, Tensor]:
        """The empty prompt's rows, [1, ...] each."""
        return self.rows([""])


def states_conditioner(pipeline: Any, model: nn.Module) -> StatesConditioner:
    """The conditioner of a pipeline around a diffusion transformer.

    Raises:
        InputError: a class whose conditioning is not known, or a pipeline without text encoders.
    """
    name = denoiser_of(model).name
    if name not in ENCODERS:
        raise InputError(f"conditioning: got a {name}, wanted one of {', '.join(ENCODERS)} or a UNet")
    if not _components(pipeline, "text_encoder"):
        raise InputError(f"{type(pipeline).__name__}: got no text encoder, wanted a pipeline that draws from prompts")
    also = _given_besides_text(type(pipeline), name, model)
    if also is not None:
        raise InputError(
            f"conditioning: got a {type(pipeline).__name__}, whose transformer is given {also}, wanted one that is "
            "given texts, a step and guidance: others are packed and drawn with only"
        )
    component = denoiser_of(model).component
    if getattr(pipeline, component, None) is None:  # some pipelines ask their denoiser's config for widths
        pipeline = copy.copy(pipeline)
        pipeline.register_modules(**{component: model})
    guided = bool(getattr(model, "config", {}).get("guidance_embeds", False))
    guidance = inspect.signature(type(pipeline).__call__).parameters["guidance_scale"].default if guided else None
    return StatesConditioner(pipeline, ENCODERS[name], sequence_length(pipeline), guidance)


def _given_besides_text(pipeline: type, name: str, model: Any) -> str | None:
    """What a transformer of the class `name` is given that training does not know, in words; None for nothing."""
    encode = getattr(pipeline, "encode_prompt", None)
    if encode is not None and "image" in inspect.signature(encode).parameters:  # Qwen-Image-Edit
        return "pictures"
    config = getattr(model, "config", {})
    read, made = config.get("in_channels") or 0, config.get("out_channels")
    if name == "FluxTransformer2DModel" and made and read > made:  # FLUX.1 Fill, Depth and Canny
        return f"{read - made} channels of pictures beside the {made} of its latents"
    if name == "SanaTransformer2DModel" and config.get("guidance_embeds"):  # Sana Sprint
        return "the time in radians"
    if name == "PixArtTransformer2DModel" and vars(model).get("use_additional_conditions"):  # PixArt-alpha, 1024 pixels
        return "the picture's resolution and aspect ratio"
    return None


def sequence_length(pipeline: Any) -> int:
    """Tokens of a prompt: the pipeline's own number, or fewer where its last tokenizer takes no more."""
    own = inspect.signature(type(pipeline).__call__).parameters["max_sequence_length"].default
    tokenizers = _components(pipeline, "tokenizer")
    return min(int(own), int(list(tokenizers.values())[-1].model_max_length)) if tokenizers else int(own)


def _components(pipeline: Any, prefix: str) -> dict[str, Any]:
    names = (prefix, f"{prefix}_2", f"{prefix}_3")
    return {name: part for name in names if (part := getattr(pipeline, name, None)) is not None}


def _stored(rows: Tensor) -> Tensor:
    """On the CPU; floating values as float32, masks as whole numbers."""
    return rows.detach().cpu().to(torch.float32 if rows.is_floating_point() else torch.int64)


def _weights_key(encoder: nn.Module) -> str:
    """A hash of the config and of each parameter's first values: another checkpoint has another."""
    firsts = {name: value.detach().flatten()[:8].float().tolist() for name, value in encoder.named_parameters()}
    return sha256_json([str(getattr(encoder, "config", "")), firsts])
