"""torchao: integer weights of linear layers, which is all that it quantizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion_lab.bench.methods.base import Method, empty_model, load_dense


class TorchAoInt8(Method):
    """See `Method`. Through diffusers' own torchao quantizer."""

    library = "torchao"

    def __init__(self) -> None:
        super().__init__("torchao-int8", config="Int8WeightOnlyConfig")

    def warm_up(self) -> None:
        import torchao.quantization  # noqa: F401

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        model = load_dense(source, dtype, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
        model.save_pretrained(out)


class TorchAoInt4(Method):
    """See `Method`. The 4-bit layout that runs on CPUs is a prototype: no safetensors, no diffusers, a state dict."""

    library = "torchao"
    _FILE = "state.pt"

    def __init__(self) -> None:
        super().__init__("torchao-int4", config="PrototypeInt4WeightOnlyConfig", group_size=64)

    def warm_up(self) -> None:
        from torchao.prototype.quantization.int4 import int4_opaque_tensor

        torch.serialization.add_safe_globals([int4_opaque_tensor.Int4OpaqueTensor])

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import quantize_

        model = load_dense(source, dtype)
        group_size = self.settings["group_size"]
        quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=group_size, set_inductor_config=False))
        model.save_config(out)
        torch.save(model.state_dict(), out / self._FILE)

    def load(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        model: nn.Module = empty_model(folder)
        model.load_state_dict(torch.load(folder / self._FILE, weights_only=True), assign=True)
        return model.eval()

    def weight(self, layer: nn.Module) -> Tensor:
        # The packed tensor has no way back: what the layer makes of the unit vectors is its weight.
        weight: Any = layer.weight
        return nn.functional.linear(torch.eye(weight.shape[1], dtype=weight.dtype), weight).T
