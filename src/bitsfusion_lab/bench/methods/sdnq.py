"""SDNQ: integer weights in groups, convolutions included. GPL-3.0: it is imported where it is installed, no more."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from bitsfusion_lab.bench.methods.base import Method, load_dense

SDNQ_TYPES = ("int2", "uint4", "int8")


class Sdnq(Method):
    """See `Method`."""

    library = "sdnq"

    def __init__(self, kind: str) -> None:
        super().__init__(f"sdnq-{kind}", weights_dtype=kind, quant_conv=True)

    def warm_up(self) -> None:
        import sdnq  # noqa: F401

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        from sdnq import SDNQConfig

        model = load_dense(source, dtype, quantization_config=SDNQConfig(**self.settings))
        model.save_pretrained(out)

    def weight(self, layer: nn.Module) -> Tensor:
        weight: Tensor = copy.deepcopy(layer).dequantize().weight  # type: ignore[operator]
        return weight
