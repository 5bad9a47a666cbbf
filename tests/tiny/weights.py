"""Random weights that leave no layer without effect."""

from __future__ import annotations

import torch
from torch import nn


def gaussian_(model: nn.Module, seed: int = 0) -> None:
    """Every parameter Gaussian of deviation 1 / sqrt(fan in), also those made as zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            width = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
