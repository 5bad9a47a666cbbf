"""The layers of a diffusers UNet2DConditionModel and the part each plays (sections 3.2 and 4.1)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import nn

FIRST_LAST_BITS = 8
"""The first and the last convolution are 8-bit (section 4.1)."""

FIXED_BITS = 8
"""Of conditioning layers, and of time layers where they stay: small, and all blocks depend on them."""

_TIME = re.compile(r"(^time_embedding\.)|(\.time_emb_proj$)")
_CONDITION = re.compile(r"^(add_embedding|class_embedding|encoder_hid_proj)(\.|$)")


class LayerRole(str, Enum):
    """What happens to a layer."""

    QUANTIZED = "quantized"  # gets its bits from the recipe
    FIRST_LAST = "first_last"  # conv_in, conv_out
    TIME = "time"  # depends on the time step alone: cached and removed
    CONDITION = "condition"  # embeds sizes, classes or pooled text (SDXL's add_embedding): 8 bits


EMBEDDING_ROLES = (LayerRole.TIME, LayerRole.CONDITION)
"""Of layers that a recipe need not name: removed, or kept at `FIXED_BITS`."""


@dataclass(frozen=True)
class LayerInfo:
    """A Linear or Conv2d layer: its name, role and the shape of its weight."""

    name: str
    role: LayerRole
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of weights, the bias not counted."""
        return math.prod(self.shape)

    @property
    def out_channels(self) -> int:
        return self.shape[0]


def unet_layers(unet: nn.Module) -> dict[str, LayerInfo]:
    """Every Linear and Conv2d of `unet`, in module order; works on meta tensors too."""
    return {
        name: layer_info(name, module, layer_role(name))
        for name, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }


def layer_info(name: str, module: Any, role: LayerRole) -> LayerInfo:
    """Of a layer, dense or packed; works on meta tensors too."""
    return LayerInfo(name, role, getattr(module, "weight_shape", None) or tuple(module.weight.shape))


def layer_role(name: str) -> LayerRole:
    """The part that the layer of this name plays."""
    if name in ("conv_in", "conv_out"):
        return LayerRole.FIRST_LAST
    if _CONDITION.search(name):
        return LayerRole.CONDITION
    return LayerRole.TIME if _TIME.search(name) else LayerRole.QUANTIZED


_KINDS = (
    (re.compile(r"^conv_(in|out)$"), "first and last"),
    (re.compile(r"\.conv_shortcut$"), "shortcut"),
    (re.compile(r"\.resnets\.\d+\.conv\d$"), "ResBlock convolution"),
    (re.compile(r"\.(down|up)samplers\."), "resampling"),
    (re.compile(r"\.attn1\."), "self-attention"),
    (re.compile(r"\.attn2\."), "cross-attention"),
    (re.compile(r"\.ff\."), "feed-forward"),
    (_TIME, "time"),
    (_CONDITION, "conditioning"),
)


def layer_kind(name: str) -> str:
    """What a layer is there for, in words: shortcut, cross-attention, feed-forward and so on."""
    return next((kind for pattern, kind in _KINDS if pattern.search(name)), "projection")


def layers_to_assign(unet: nn.Module) -> dict[str, LayerInfo]:
    """The layers that a recipe chooses bits for: all but time and conditioning layers, conv_in and conv_out."""
    return {name: layer for name, layer in unet_layers(unet).items() if layer.role is LayerRole.QUANTIZED}


def feature_width(unet: nn.Module) -> int:
    """Values to cache per time step: the summed widths of all time projections (Appendix C)."""
    return sum(layer.out_channels for name, layer in unet_layers(unet).items() if name.endswith(".time_emb_proj"))
