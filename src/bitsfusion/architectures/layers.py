"""A layer that may be packed: its name, its shape and the part it plays in the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

FIRST_LAST_BITS = 8
"""Bits of a model's ends: the first and the last convolution of a UNet are 8-bit (section 4.1)."""

FIXED_BITS = 8
"""Bits of conditioning layers, and of time layers where they stay: small, and all blocks depend on them."""

MODULATION_BITS = 2
"""What a transformer's modulation has about, where it stays and its bits are not known."""


class LayerRole(str, Enum):
    """What happens to a layer."""

    QUANTIZED = "quantized"  # gets its bits from the recipe
    FIRST_LAST = "first_last"  # an end of the model, such as conv_in and conv_out
    TIME = "time"  # depends on the time step alone: cached and removed
    CONDITION = "condition"  # embeds sizes, classes or pooled text (SDXL's add_embedding): 8 bits


EMBEDDING_ROLES = (LayerRole.TIME, LayerRole.CONDITION)
"""Roles of layers that a recipe need not name: removed, or kept at `FIXED_BITS`."""


@dataclass(frozen=True)
class LayerInfo:
    """A layer that is packed: its name, role, the shape of its weight, and what it is there for.

    Fields:
        kind: in words: shortcut, cross-attention, feed-forward and so on.
    """

    name: str
    role: LayerRole
    shape: tuple[int, ...]
    kind: str = "projection"

    @property
    def numel(self) -> int:
        """The number of weights, the bias not counted."""
        return math.prod(self.shape)
