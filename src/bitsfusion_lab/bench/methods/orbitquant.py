"""OrbitQuant: rotated weights of transformers' linear layers, without calibration."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from bitsfusion_lab.bench.methods.base import Method, load_dense

ORBITQUANT_BITS = (2, 4)


class OrbitQuant(Method):
    """See `Method`. The library protects some layers by itself."""

    library = "orbitquant"

    def __init__(self, bits: int) -> None:
        super().__init__(f"orbitquant-w{bits}", weight_bits=bits)

    def warm_up(self) -> None:
        import orbitquant  # noqa: F401

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        from orbitquant import OrbitQuantConfig

        load_dense(source, dtype, quantization_config=OrbitQuantConfig(**self.settings)).save_pretrained(out)

    def weight(self, layer: nn.Module) -> Tensor:
        from orbitquant.modeling import dequantize_quantized_linear_modules

        plain = dequantize_quantized_linear_modules(nn.ModuleDict({"layer": copy.deepcopy(layer)}))
        weight: Tensor = plain.get_submodule("layer").weight
        return weight
