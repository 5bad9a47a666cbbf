"""A rival's model as a file: the true bytes of a method are those of the file that its images were drawn from.

One safetensors file. Of each quantized layer it has codes, packed densely (b bits each, low bits first) and then under
zstd where that is smaller, as ours are; and what turns codes into weights: scales and zero points, or a palette.
Everything else (biases, norms, layers that are not quantized) is float32. The metadata says how to read each layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bitsfusion.io.atomic import atomic_path
from bitsfusion.packing.entropy import compress, decompress

_METADATA = "rival"


@dataclass(frozen=True)
class UniformWeight:
    """weight = (code - zero) x scale, of `groups` of input channels one after another.

    Fields:
        bits: b, 1 to 8.
        codes: uint8 of the weight's shape [out, in, ...], 0 .. 2^b - 1.
        scale: float32 [groups, out].
        zero: uint8 [groups, out], or [1, 1] where all are the same.
        groups: how many input channels each group has; they add up to `in`.
    """

    bits: int
    codes: Tensor
    scale: Tensor
    zero: Tensor
    groups: tuple[int, ...] = ()

    def dense(self) -> Tensor:
        """float32 of the codes' shape."""
        tail = [1] * (self.codes.dim() - 1)
        zero = self.zero.expand(len(self.scale), -1)
        parts = [
            (codes.float() - zero[i].float().reshape(-1, *tail)) * self.scale[i].reshape(-1, *tail)
            for i, codes in enumerate(self.codes.split(list(self.groups) or [self.codes.shape[1]], dim=1))
        ]
        return torch.cat(parts, dim=1)

    def extra_tensors(self) -> dict[str, Tensor]:
        """What the codes need, and is stored with them."""
        return {"scale": self.scale, "zero": self.zero}


@dataclass(frozen=True)
class PaletteWeight:
    """weight = palette[code].

    Fields:
        bits: b, 1 to 8.
        codes: uint8 of the weight's shape, 0 .. 2^b - 1.
        palette: [2^b] float16.
    """

    bits: int
    codes: Tensor
    palette: Tensor

    def dense(self) -> Tensor:
        """float32 of the codes' shape."""
        return self.palette.float()[self.codes.long()]

    def extra_tensors(self) -> dict[str, Tensor]:
        """What the codes need, and is stored with them."""
        return {"palette": self.palette}


StoredWeight: TypeAlias = UniformWeight | PaletteWeight


def write_model(path: Path, unet: nn.Module, weights: Mapping[str, StoredWeight]) -> int:
    """Writes `unet` with the `weights` of its quantized layers, whole or not at all; the file's bytes.

    Args:
        unet: gives every other tensor; its quantized layers may be of any kind.
        weights: layer name -> what stands for its weight.
    """
    tensors = {}
    for name, tensor in unet.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if layer not in weights or leaf == "bias":
            tensors[name] = tensor.detach().float().contiguous()
    layers: dict[str, Any] = {}
    for name, weight in weights.items():
        packed = pack_codes(weight.codes, weight.bits)
        squeezed = compress(packed.tobytes())
        smaller = len(squeezed) < len(packed)
        data = np.frombuffer(squeezed, dtype=np.uint8) if smaller else packed
        tensors[f"{name}.codes"] = torch.from_numpy(data.copy())
        tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in weight.extra_tensors().items()}
        layers[name] = {"bits": weight.bits, "shape": list(weight.codes.shape), "zstd": smaller}
        if isinstance(weight, UniformWeight) and weight.groups:
            layers[name]["groups"] = list(weight.groups)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {_METADATA: json.dumps(layers, separators=(",", ":"))})
    return path.stat().st_size


def read_model(path: Path, config: Mapping[str, Any]) -> UNet2DConditionModel:
    """The dense float32 UNet of a file, in eval mode; `config` is the UNet's own."""
    with safe_open(path, framework="pt") as file:
        layers = json.loads(file.metadata()[_METADATA])
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = _read(name, layer, tensors).dense()
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(dict(config))
    unet.load_state_dict(tensors)
    return unet.eval()


def _read(name: str, layer: Mapping[str, Any], tensors: dict[str, Tensor]) -> StoredWeight:
    """Takes the layer's parts out of `tensors`."""
    bits, shape = int(layer["bits"]), [int(size) for size in layer["shape"]]
    data = tensors.pop(f"{name}.codes").numpy()
    if layer["zstd"]:
        data = np.frombuffer(decompress(data.tobytes(), packed_bytes(math.prod(shape), bits)), dtype=np.uint8)
    codes = unpack_codes(data, bits, math.prod(shape)).reshape(shape)
    if f"{name}.palette" in tensors:
        return PaletteWeight(bits, codes, tensors.pop(f"{name}.palette"))
    scale, zero = tensors.pop(f"{name}.scale"), tensors.pop(f"{name}.zero")
    return UniformWeight(bits, codes, scale, zero, tuple(layer.get("groups", ())))


def packed_bytes(count: int, bits: int) -> int:
    """The bytes of `count` codes of `bits` bits."""
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> np.ndarray:
    """uint8 codes of any shape -> uint8 [packed_bytes]: b bits each, low bits first, across byte borders."""
    values = codes.flatten().numpy()
    planes = (values[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack_codes(data: np.ndarray, bits: int, count: int) -> Tensor:
    """The inverse: uint8 [count]."""
    planes = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy((planes << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8))
