"""A packed folder, read by diffusers through this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion_lab.bench.methods.base import installed_version, load_dense


class Packed:
    """See `Method`. There is nothing to prepare: the folder is what the user asks about."""

    name = library = "bitsfusion"

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def version(self) -> str | None:
        return installed_version(self.library)

    def warm_up(self) -> None:
        import bitsfusion.artifact.skeleton  # noqa: F401

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        raise NotImplementedError("a packed folder is given")

    def load(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        model: nn.Module = load_dense(folder, dtype)
        return model

    def weight(self, layer: nn.Module) -> Tensor:
        return layer.weight  # type: ignore[return-value]
