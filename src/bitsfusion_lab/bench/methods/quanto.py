"""optimum-quanto: integer weights of linear layers and convolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from bitsfusion_lab.bench.methods.base import Method, load_dense

QUANTO_TYPES = ("int2", "int4", "int8")
KEPT_DENSE = ("conv_in", "conv_out")
"""The first and last layers, which quanto's guides keep: at 2 bits they alone ruin the output."""
_WEIGHTS, _MAP = "diffusion_pytorch_model.safetensors", "quanto_qmap.json"


class Quanto(Method):
    """See `Method`."""

    library = "optimum-quanto"

    def __init__(self, kind: str) -> None:
        super().__init__(f"quanto-{kind}", weights=f"q{kind}", exclude=list(KEPT_DENSE))

    def warm_up(self) -> None:
        import optimum.quanto  # noqa: F401

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        from optimum.quanto import QuantizedDiffusersModel

        QuantizedDiffusersModel.quantize(load_dense(source, dtype), **self.settings).save_pretrained(out)

    def load(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        from diffusers import UNet2DConditionModel
        from optimum.quanto import requantize

        # What QuantizedDiffusersModel.from_pretrained does, which has no way to ask for a dtype other than float32.
        with torch.device("meta"):
            model: Any = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
        model = model.to(dtype).eval()
        # Copies, because torch's int8 matmul crashes on tensors that are not aligned, as those of a mapped file are.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / _WEIGHTS).items()}
        requantize(model, tensors, json.loads((folder / _MAP).read_text()))
        unet: nn.Module = model
        return unet
