"""How lopsided the weights of each layer are (Appendix D, Figure 8)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from bitsfusion.architectures.registry import layers_to_assign

NEARLY_SYMMETRIC = 0.5
"""The paper finds 97 % of SD-v1.5's layers within this magnitude, hence levels that are symmetric around zero."""


@torch.no_grad()
def skewness(unet: nn.Module) -> dict[str, float]:
    """The third standardized moment of the weights, E[(w - m)^3] / s^3, of each layer that gets its bits from a recipe.

    A layer whose weights are all equal has 0.
    """
    found = {}
    for name in layers_to_assign(unet):
        weight = unet.get_parameter(f"{name}.weight").flatten().double()
        centred = weight - weight.mean()
        spread = float(centred.square().mean().sqrt())
        found[name] = float(centred.pow(3).mean()) / spread**3 if spread > 0 else 0.0
    return found


def nearly_symmetric(values: Mapping[str, float]) -> float:
    """The share of layers with a skewness in [-0.5, 0.5]."""
    return sum(abs(value) <= NEARLY_SYMMETRIC for value in values.values()) / max(1, len(values))
