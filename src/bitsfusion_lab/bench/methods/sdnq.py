"""SDNQ: integer weights in groups, convolutions included. GPL-3.0: it is imported where it is installed, no more."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion_lab.bench.methods.base import installed_version, load_dense

SDNQ_TYPES = ("int2", "uint4", "int8")


class Sdnq:
    """See `Method`."""

    library = "sdnq"

    def __init__(self, kind: str) -> None:
        self.name = f"sdnq-{kind}"
        self.settings: dict[str, Any] = {"weights_dtype": kind, "quant_conv": True}

    def version(self) -> str | None:
        return installed_version(self.library)

    def warm_up(self) -> None:
        import sdnq  # noqa: F401

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        from sdnq import SDNQConfig

        model = load_dense(source, dtype, quantization_config=SDNQConfig(**self.settings))
        model.save_pretrained(out)

    def load(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        model: nn.Module = load_dense(folder, dtype)
        return model

    def weight(self, layer: nn.Module) -> Tensor:
        weight: Tensor = copy.deepcopy(layer).dequantize().weight  # type: ignore[operator]
        return weight
