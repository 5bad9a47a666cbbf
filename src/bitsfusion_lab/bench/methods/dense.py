"""The model as it is, in a floating type: what everything else is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion_lab.bench.bench_file import Dtype
from bitsfusion_lab.bench.methods.base import installed_version, load_dense

ONE_FILE = "100GB"
"""Shard size that nothing reaches: readers of the folder look for one file."""


class Dense:
    """See `Method`. It is named after the type that it is asked for in."""

    library = "diffusers"

    def __init__(self, dtype: Dtype) -> None:
        self.name = f"dense-{dtype.value}"
        self.settings: dict[str, Any] = {}

    def version(self) -> str | None:
        return installed_version(self.library)

    def warm_up(self) -> None:
        pass

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        load_dense(source, dtype).save_pretrained(out, max_shard_size=ONE_FILE)

    def load(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        model: nn.Module = load_dense(folder, dtype)
        return model

    def weight(self, layer: nn.Module) -> Tensor:
        return layer.weight  # type: ignore[return-value]
