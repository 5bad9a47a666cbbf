"""Diffusion transformers of diffusers: FLUX.1, FLUX.2, SD3 and 3.5, PixArt, Sana, Z-Image, Qwen-Image, AuraFlow.

Their blocks are lists of equal modules, so that one description serves them all; what is particular to a class is a row
of `TRANSFORMERS`. What reads the image, the text and the time step, and what writes the result, are the model's ends:
8 bits, as the first and the last convolution of a UNet. Modulation depends on the time step (and in some classes on
pooled text and guidance); it gets its bits from the recipe like any other layer.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitsfusion.architectures.base import Denoiser
from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.timing import AURA_FLOW, FLUX2, PIXART, QWEN_IMAGE, SANA, Z_IMAGE, Timing
from bitsfusion.architectures.transformer_calls import (
    Call,
    aura_flow,
    flux,
    flux2,
    pixart,
    qwen_image,
    sana,
    sd3,
    z_image,
)
from bitsfusion.architectures.transformer_inputs import INPUTS, Inputs
from bitsfusion.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ENDS = re.compile(
    r"^(x_embedder|context_embedder|time_text_embed|time_guidance_embed|time_embed|time_step_embed|time_step_proj|timestep_embedder|"
    r"t_embedder|cap_embedder|caption_projection|caption_norm|pos_embed|patch_embed|img_in|txt_in|adaln_single|"
    r"norm_out|proj_out|all_x_embedder|all_final_layer|register_tokens|guidance_embedder)(\.|$)"
)
_KINDS = (
    (re.compile(r"(^|\.)(norm(\d*|_out)(_context)?|\w*modulation\w*|\w*_mod)(\.|$)"), "modulation"),
    (re.compile(r"^(adaln_single|time_embed)\.linear$"), "modulation"),
    (re.compile(r"^(proj_out|(all_)?final_layer)(\.|$)"), "output"),
    (re.compile(r"^(\w*embed\w*|(img|txt)_in|caption_projection|adaln_single|time_step_proj)(\.|$)"), "embedding"),
    # The single blocks of FLUX.1 and FLUX.2 run both side by side, with one layer before or behind them.
    (re.compile(r"^single_\w+\.\d+\.(proj_out|attn\.(to_qkv_mlp_proj|to_out))$"), "attention and feed-forward"),
    (re.compile(r"\.attn2\."), "cross-attention"),
    (re.compile(r"\.(attn\d?|attention)\."), "attention"),
    (re.compile(r"\.(ff\w*|feed_forward|mlp\w*|img_mlp|txt_mlp|proj_mlp)(\.|$)"), "feed-forward"),
)


@dataclass(frozen=True)
class Transformer(Denoiser):
    """A stack of attention blocks over patches of the latents.

    Fields:
        blocks: the attributes that hold the blocks, in the order of the forward.
        call: one forward as the class's pipeline calls it.
        steps: see `timing`; None where more than the time step enters the modulation.
        others: see `modulated_by`.
    """

    blocks: tuple[str, ...]
    call: Call
    steps: Timing | None = None
    others: str = ""

    @property
    def timing(self) -> Timing | None:
        return self.steps

    @property
    def modulated_by(self) -> str:
        return self.others

    def predict(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.call(model, noisy, timesteps, conditioning)

    def features(self, output: Any) -> Sequence[Tensor]:
        """Image and text stream, where a block has both."""
        parts = output if isinstance(output, tuple) else (output,)
        return [part for part in parts if part is not None]

    def role(self, name: str) -> LayerRole:
        return LayerRole.FIRST_LAST if ENDS.search(name) else LayerRole.QUANTIZED

    def kind(self, name: str) -> str:
        return transformer_kind(name)

    def example(
        self, config: Mapping[str, Any], batch: int, latent: int, tokens: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Conditioning]:
        """With pooled text and guidance where the class takes them; no token is padding."""
        import torch

        inputs, values = self._inputs(), self._values(config)

        def gaussian(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, generator=generator)

        tensors = {keyword: gaussian(tokens, int(values[width])) for keyword, width in inputs.texts.items()}
        tensors |= {keyword: gaussian(int(values[width])) for keyword, width in inputs.pooled.items()}
        if values.get("guidance_embeds"):
            tensors["guidance"] = torch.full((batch,), 4.0)
        channels = int(values["in_channels"]) // inputs.patch**2
        return gaussian(channels, latent, latent), Conditioning(tensors)

    def latent_size(self, config: Mapping[str, Any]) -> int:
        return int(self._values(config).get("sample_size") or self._inputs().latent)

    @property
    def compression(self) -> int:
        return self._inputs().compression

    def patch(self, config: Mapping[str, Any]) -> int:
        values = self._values(config)
        own = values.get("patch_size") or values.get("all_patch_size") or 1
        return max(self._inputs().patch, own if isinstance(own, int) else own[0])  # either counts them, or both

    def prompt_tokens(self, tokens: int) -> int:
        return tokens + self._inputs().more_tokens

    def _inputs(self) -> Inputs:
        if self.name not in INPUTS:
            raise InputError(f"{self.name}: got a class whose inputs are not known, wanted one of {', '.join(INPUTS)}")
        return INPUTS[self.name]

    def _values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config with the class's own defaults where it says nothing."""
        made = getattr(importlib.import_module(self.library), self.name).__init__
        parameters = inspect.signature(made).parameters.values()
        return {each.name: each.default for each in parameters} | dict(config)

    def units(self, model: nn.Module) -> list[nn.Module]:
        """Every block."""
        return [block for name in self.blocks for block in getattr(model, name)]

    def feature_blocks(self, model: nn.Module) -> list[nn.Module]:
        """Every block; its hidden states, and where it has two streams, the text's too."""
        return self.units(model)

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """Every block by its name."""
        return {f"{name}.{place}": block for name in self.blocks for place, block in enumerate(getattr(model, name))}


def transformer_kind(name: str) -> str:
    """What a layer of a transformer is there for, by the names that diffusers gives such layers."""
    return next((kind for pattern, kind in _KINDS if pattern.search(name)), "projection")


def _transformer(name: str, call: Call, *blocks: str, steps: Timing | None = None, others: str = "") -> Transformer:
    layers = ("Linear", "Conv2d")
    return Transformer(name, "transformer", "diffusers", "transformer", layers, blocks, call, steps, others)


_POOLED = "pooled text"
TRANSFORMERS = (
    _transformer("FluxTransformer2DModel", flux, "transformer_blocks", "single_transformer_blocks", others=_POOLED),
    _transformer("Flux2Transformer2DModel", flux2, "transformer_blocks", "single_transformer_blocks", steps=FLUX2),
    _transformer("SD3Transformer2DModel", sd3, "transformer_blocks", others=_POOLED),
    _transformer("PixArtTransformer2DModel", pixart, "transformer_blocks", steps=PIXART),
    _transformer("SanaTransformer2DModel", sana, "transformer_blocks", steps=SANA),
    _transformer("ZImageTransformer2DModel", z_image, "noise_refiner", "context_refiner", "layers", steps=Z_IMAGE),
    _transformer("QwenImageTransformer2DModel", qwen_image, "transformer_blocks", steps=QWEN_IMAGE),
    _transformer(
        "AuraFlowTransformer2DModel",
        aura_flow,
        "joint_transformer_blocks",
        "single_transformer_blocks",
        steps=AURA_FLOW,
    ),
)
