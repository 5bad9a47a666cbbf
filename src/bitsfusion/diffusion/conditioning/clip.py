"""Stable Diffusion's conditioning: one CLIP text encoder, or SDXL's two with pooled text and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.diffusion.conditioning.tokens import captions_cut, tokenize, tokenizer_sha256
from bitsfusion.errors import InputError

_TEXT = "encoder_hidden_states"
_POOLED = "added_cond_kwargs.text_embeds"
_SIZES = "added_cond_kwargs.time_ids"
_AESTHETIC_SCORE, _NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # the refiner's defaults in diffusers
_OTHER_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


@dataclass(frozen=True)
class ClipConditioner:
    """See `Conditioner`.

    Fields:
        tokenizers, texts: of each text encoder that there is, by its component's suffix ("" or "_2").
        pooled: whether the denoiser is also given the last encoder's pooled text, and sizes (SDXL).
        aesthetics: whether a score stands in the place of the target size (SDXL's refiner).
        zero_null: whether the null prompt is zeros instead of the encoded empty text.
        scale: pixels a latent pixel.
        guidance_width: of the guidance embedding that a distilled model takes (LCM); 0 where there is none.
        guidance: what it is told.
    """

    tokenizers: Mapping[str, Any]
    texts: Mapping[str, nn.Module]
    pooled: bool = False
    aesthetics: bool = False
    zero_null: bool = False
    scale: int = 8
    guidance_width: int = 0
    guidance: float = 7.5

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        return tuple(self.texts.values())

    @property
    def sized(self) -> bool:
        return self.pooled

    def key(self) -> dict[str, Any]:
        return {f"tokenizer{suffix}_sha256": tokenizer_sha256(each) for suffix, each in self.tokenizers.items()}

    def rows(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return {f"input_ids{suffix}": tokenize(each, captions) for suffix, each in self.tokenizers.items()}

    def cut(self, captions: Sequence[str]) -> int:
        return max(captions_cut(each, captions) for each in self.tokenizers.values())

    def encode(
        self,
        rows: Mapping[str, Tensor],
        latent_size: Sequence[int],
        sizes: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Conditioning:
        texts = self._texts(rows)
        count, device = len(texts[_TEXT]), texts[_TEXT].device
        if dropped is not None:
            chosen = dropped.to(device)
            for name, tensor in texts.items():
                null = self._null_texts[name].to(device)
                texts[name] = torch.where(chosen.view(-1, *[1] * (tensor.dim() - 1)), null, tensor)
        return Conditioning(texts | self._others(count, latent_size, sizes, device, _AESTHETIC_SCORE))

    def null(self, count: int, latent_size: Sequence[int]) -> Conditioning:
        texts = {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self._null_texts.items()}
        device = texts[_TEXT].device
        return Conditioning(texts | self._others(count, latent_size, None, device, _NEGATIVE_AESTHETIC_SCORE))

    @torch.no_grad()
    def _texts(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states, pooled = [], None
        for suffix, encoder in self.texts.items():
            device = next(encoder.parameters()).device
            ids = rows[f"input_ids{suffix}"].to(device)
            if not self.pooled:
                states.append(encoder(ids)[0].float())
                continue
            output = encoder(ids, output_hidden_states=True)
            states.append(output.hidden_states[-2].float())
            pooled = output[0].float()
        texts = {_TEXT: torch.cat(states, dim=-1)}
        return texts if pooled is None else texts | {_POOLED: pooled}

    @cached_property
    def _null_texts(self) -> dict[str, Tensor]:
        """The conditioning of the empty prompt, [1, ...] each."""
        texts = self._texts(self.rows([""]))
        return {name: torch.zeros_like(tensor) for name, tensor in texts.items()} if self.zero_null else texts

    def _others(
        self, count: int, latent_size: Sequence[int], sizes: Tensor | None, device: torch.device, score: float
    ) -> dict[str, Tensor]:
        """Sizes and crops in pixels, float32 [count, 5 or 6]; the guidance embedding, [count, width]."""
        others = {}
        if self.pooled:
            height, width = (self.scale * side for side in latent_size)
            if sizes is None:
                sizes = torch.tensor([[height, width, 0, 0]]).expand(count, 4)
            last = [score] if self.aesthetics else [height, width]
            ending = torch.tensor([last], dtype=torch.float32).expand(count, len(last))
            others[_SIZES] = torch.cat([sizes.float().cpu(), ending], dim=1).to(device)
        if self.guidance_width:
            embedded = guidance_embedding(self.guidance, self.guidance_width)
            others["timestep_cond"] = embedded.expand(count, -1).to(device)
        return others


def guidance_embedding(guidance: float, width: int) -> Tensor:
    """[1, width] float32: sines and cosines of 1000 x (guidance - 1), as a guidance-distilled model takes them."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = 1000.0 * (guidance - 1.0) * frequencies
    embedded = torch.cat([angles.sin(), angles.cos()])
    return torch.nn.functional.pad(embedded, (0, width % 2))[None]


def clip_conditioner(pipeline: Any, unet: Any) -> ClipConditioner:
    """The conditioner of a pipeline around a UNet2DConditionModel.

    Raises:
        InputError: a UNet that is also given images (inpainting, image editing, upscaling), classes or image
            embeddings, or a pipeline without text encoders.
    """
    config, name = unet.config, type(pipeline).__name__
    vae = getattr(pipeline, "vae", None)
    latents = None if vae is None else getattr(vae.config, "latent_channels", None)
    if latents is not None and config.in_channels != latents:
        raise InputError(
            f"{name}: got a UNet of {config.in_channels} input channels with latents of {latents}, "
            "wanted one that is given a text and no image"
        )
    asked = [key for key in _OTHER_CONDITIONS if config.get(key) is not None]
    if config.get("addition_embed_type") not in (None, "text_time"):
        asked.append("addition_embed_type")
    if asked:
        raise InputError(
            f"{name}: got a UNet with {asked[0]} {config[asked[0]]!r}, wanted one given a text, sizes and a step alone"
        )
    parts = {suffix: getattr(pipeline, f"text_encoder{suffix}", None) for suffix in ("", "_2")}
    texts = {suffix: encoder for suffix, encoder in parts.items() if encoder is not None}
    if not texts:
        raise InputError(f"{name}: got no text encoder, wanted a pipeline that draws from prompts")
    pooled = config.get("addition_embed_type") == "text_time"
    options = getattr(pipeline, "config", {})
    aesthetics = bool(pooled and options.get("requires_aesthetics_score", False))
    levels = 3 if vae is None else len(vae.config.block_out_channels) - 1
    return ClipConditioner(
        {suffix: getattr(pipeline, f"tokenizer{suffix}") for suffix in texts},
        texts,
        pooled=pooled,
        aesthetics=aesthetics,
        zero_null=bool(pooled and options.get("force_zeros_for_empty_prompt", True)),
        scale=2**levels,
        guidance_width=config.get("time_cond_proj_dim") or 0,
    )
