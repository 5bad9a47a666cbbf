"""optimum-quanto: integer weights of linear layers and convolutions."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.io.texts import read_json
from bitsfusion_lab.bench.methods.base import Method, empty_model, load_dense

QUANTO_TYPES = ("int2", "int4", "int8")
_WEIGHTS, _MAP = "diffusion_pytorch_model.safetensors", "quanto_qmap.json"


class Quanto(Method):
    """See `Method`. First and last layers are kept, as quanto's guides do: at 2 bits they alone ruin the output."""

    library = "optimum-quanto"

    def __init__(self, kind: str) -> None:
        super().__init__(f"quanto-{kind}", weights=f"q{kind}", kept="first and last layers")

    def warm_up(self) -> None:
        import optimum.quanto  # noqa: F401

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        from optimum.quanto import QuantizedDiffusersModel

        model = load_dense(source, dtype)
        kept = [name for name, layer in model_layers(model).items() if layer.role is LayerRole.FIRST_LAST]
        QuantizedDiffusersModel.quantize(model, weights=self.settings["weights"], exclude=kept).save_pretrained(out)

    def load(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        from optimum.quanto import requantize

        # What QuantizedDiffusersModel.from_pretrained does, which has no way to ask for a dtype other than float32.
        model: nn.Module = empty_model(folder).to(dtype).eval()
        # Copies, because torch's int8 matmul crashes on tensors that are not aligned, as those of a mapped file are.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / _WEIGHTS).items()}
        requantize(model, tensors, read_json(folder / _MAP))
        return model
