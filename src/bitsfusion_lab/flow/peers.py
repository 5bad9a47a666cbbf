"""Other quantizers on the flow model's transformer, each as its own documentation has it, and the size of its file.

A library's model is read back into dense weights: pictures are of the values that it computes with, activations are
left alone. The file is what the library's tensors take in one safetensors file, everything else in FP16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion_lab.bench.methods.base import installed_version
from bitsfusion_lab.bench.methods.q2_k import BLOCK, encode_q2_k

Make = Callable[[nn.Module, Path], tuple[dict[str, Tensor], dict[str, Tensor]]]
"""(full precision, an empty folder) -> (layer -> dense weight, tensors of the file)."""


@dataclass(frozen=True)
class Peer:
    """A quantizer and its setting.

    Fields:
        name: of the row.
        library: the distribution on PyPI.
        title: what the table calls it.
        make: see `Make`.
    """

    name: str
    library: str
    title: str
    make: Make

    @property
    def installed(self) -> bool:
        """Whether its library is there."""
        return installed_version(self.library) is not None


def apply_peer(peer: Peer, model: nn.Module, file: Path) -> nn.Module:
    """A copy of `model` with the peer's weights; writes its file into a folder that is there."""
    dense, tensors = peer.make(model, file.parent)
    made = copy.deepcopy(model)
    for name, weight in dense.items():
        layer: Any = made.get_submodule(name)
        layer.weight.data.copy_(weight.detach().float())
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, file)
    return made


def _ends(model: nn.Module) -> list[str]:
    return [name for name, layer in model_layers(model).items() if layer.role is LayerRole.FIRST_LAST]


def _half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}


def _sdnq(kind: str, group: int) -> Make:
    def make(model: nn.Module, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        from diffusers import AuraFlowTransformer2DModel
        from sdnq import SDNQConfig

        source: Any = model
        source.save_pretrained(folder / "dense")
        setting = SDNQConfig(weights_dtype=kind, quant_conv=True, group_size=group)
        quantized: Any = AuraFlowTransformer2DModel.from_pretrained(folder / "dense", quantization_config=setting)
        dense = {}
        for name in model_layers(model):
            layer: Any = copy.deepcopy(quantized.get_submodule(name))
            dense[name] = layer.dequantize().weight if hasattr(layer, "sdnq_dequantizer") else layer.weight
        return dense, _half(quantized.state_dict())

    return make


def _quanto(model: nn.Module, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Without the model's ends, as its guides leave them out at two bits."""
    from optimum.quanto import freeze, qint2, quantize

    quantized = copy.deepcopy(model)
    quantize(quantized, weights=qint2, exclude=_ends(model))
    freeze(quantized)
    dense = {}
    for name in model_layers(model):
        weight: Any = quantized.get_submodule(name).weight
        dense[name] = weight.dequantize() if hasattr(weight, "dequantize") and name not in _ends(model) else weight
    return dense, _half(_plain(quantized.state_dict()))


def _plain(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def _orbitquant(protected: bool) -> Make:
    def make(model: nn.Module, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        from orbitquant import OrbitQuantConfig, quantize_model
        from orbitquant.modeling import dequantize_quantized_linear_modules

        options = {} if protected else {"lowbit_boundary_protection": 0, "lowbit_interior_protection": False}
        quantized = copy.deepcopy(model)
        quantize_model(quantized, OrbitQuantConfig(weight_bits=2, **options), quantization_device="cpu")
        tensors = _half({name: tensor.clone() for name, tensor in quantized.state_dict().items()})
        plain = dequantize_quantized_linear_modules(quantized)
        return {name: plain.get_submodule(name).weight for name in model_layers(model)}, tensors

    return make


def _q2_k(model: nn.Module, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """GGUF's blocks run over the flattened weights: no reader takes them so, rows of 192 are no multiple of 256."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    dense, tensors = {}, _half(model.state_dict())
    for name in model_layers(model):
        weight: Any = model.get_submodule(name).weight
        if name in _ends(model) or weight.numel() % BLOCK:
            dense[name] = weight.half()
            continue
        blocks = encode_q2_k(weight.detach().reshape(1, -1))
        tensors[f"{name}.weight"] = blocks
        read = torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType.Q2_K))
        dense[name] = read.reshape(weight.shape)
    return dense, tensors


PEERS = (
    Peer("sdnq", "sdnq", "SDNQ uint2, its own groups", _sdnq("uint2", 0)),
    Peer("sdnq_64", "sdnq", "SDNQ uint2, groups of 64", _sdnq("uint2", 64)),
    Peer("quanto", "optimum-quanto", "quanto qint2, ends in FP16", _quanto),
    Peer("orbitquant", "orbitquant", "OrbitQuant W2, nothing protected", _orbitquant(False)),
    Peer("orbitquant_own", "orbitquant", "OrbitQuant W2, as it protects by itself", _orbitquant(True)),
    Peer("q2_k", "gguf", "GGUF Q2_K over flattened rows, ends in FP16", _q2_k),
)
