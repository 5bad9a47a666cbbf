"""The size of a packed model, from its config and the bits of its layers alone: no weights are read.

Weights are taken to be Gaussian, as those of trained layers nearly are; what zstd makes of their levels is measured on
a sample. The largest possible size needs no such assumption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from bitsfusion.artifact.model_config import named_architecture
from bitsfusion.artifact.parts import written_config
from bitsfusion.artifact.schema import PACKED_SUFFIX, TIME_TENSORS, PackedConfig, PackedEntry, TimeFeatures
from bitsfusion.artifact.skeleton import empty_model, make_packed
from bitsfusion.artifact.tensors import encode_layer
from bitsfusion.artifact.weight_file import header
from bitsfusion.artifact.writer import config_text
from bitsfusion.nn.packed import packed_buffer
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import ScaleInit, quantize
from bitsfusion.packing.accounting import FileBytes, LayerSize

_NO_HASH = "0" * 64
_ROWS, _INPUTS = 128, 1024  # of the sample
_FRAME = 12  # bytes of a zstd frame around its blocks
_BLOCK, _BLOCK_HEADER = 1 << 17, 3
_MOST_FRAME = 18  # RFC 8878: the longest header and its magic number
_SCALE_BYTES = 3  # of a scale's four the lower ones are noise, the upper ones nearly the same in a whole layer


@dataclass(frozen=True)
class ExpectedSize:
    """A packed model that is not there yet.

    Fields:
        config: its `quantization_config`, with hashes of zeros.
        layers: expected bytes on disk of each packed layer, scales included.
        file: where the expected bytes of the weight file are.
        config_bytes: of its config.json.
        most: bytes of weight file and config.json that no weights, Gaussian or not, exceed.
        in_memory: packed buffers, time features (16 bits) and other parameters (32 bits); exact.
    """

    config: PackedConfig
    layers: Mapping[str, int]
    file: FileBytes
    config_bytes: int
    most: int
    in_memory: int

    @property
    def total(self) -> int:
        """Expected bytes of weight file and config.json."""
        return self.file.total + self.config_bytes


def expected_size(
    model_config: Mapping[str, Any],
    bits: Mapping[str, int],
    time_features: TimeFeatures,
    removed: Mapping[str, tuple[int, ...]],
) -> ExpectedSize:
    """The size of a model packed with these bits.

    Args:
        model_config: its config.json.
        bits: of every layer that is kept.
        time_features: what is stored of them.
        removed: weight shapes of the layers that they replace.

    Raises:
        ArtifactError: no such model, or layers and bits that do not fit.
    """
    model = empty_model(model_config)
    plain = written_config(named_architecture(model_config), model, model_config)
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in bits}  # type: ignore[arg-type]
    config = PackedConfig(
        format_version=time_features.version,
        layers={name: PackedEntry(bits=bits[name], shape=shape, sha256=_NO_HASH) for name, shape in shapes.items()},
        removed=dict(removed),
        time_features=time_features,
        others_sha256=_NO_HASH,
        source_sha256=_NO_HASH,
    )
    make_packed(model, config)
    state = model.state_dict()
    frames = {name: _expected_frames(entry.size) for name, entry in config.layers.items()}
    on_disk = {name: sum(parts) for name, parts in frames.items()}
    entries = [
        (name, tensor.dtype, [size], size)
        if (size := on_disk.get(name.removesuffix(PACKED_SUFFIX))) is not None and name.endswith(PACKED_SUFFIX)
        else (name, tensor.dtype, list(tensor.shape), tensor.nbytes)
        for name, tensor in state.items()
    ]
    start = len(header(entries))
    features = sum(tensor.nbytes for name, tensor in state.items() if name in TIME_TENSORS)
    packed = sum(tensor.nbytes for name, tensor in state.items() if name.endswith(PACKED_SUFFIX))
    other = sum(tensor.nbytes for tensor in state.values()) - features - packed
    scales = sum(scales for scales, _ in frames.values())
    text = len(config_text(plain, config).encode())
    most = start + features + other + text + sum(_most(entry.size) for entry in config.layers.values())
    return ExpectedSize(
        config=config,
        layers=on_disk,
        file=FileBytes(sum(on_disk.values()) - scales, scales, features, other, start),
        config_bytes=text,
        most=most,
        in_memory=features + other + packed,
    )


@cache
def coded_bits(bits: int) -> float:
    """Bits that the level of a Gaussian weight takes under zstd, at the scales that `init` finds."""
    weight = torch.randn(_ROWS, _INPUTS, generator=torch.Generator().manual_seed(bits))
    scale = layer_scale("sample", weight, bits, ScaleInit.COMPACT)
    payload = encode_layer(packed_buffer(quantize(weight, scale, bits), scale, bits), _ROWS)
    scales = int.from_bytes(bytes(payload[:4].tolist()), "little") + 4
    return 8 * (payload.numel() - scales - _FRAME) / weight.numel()


def _expected_frames(size: LayerSize) -> tuple[int, int]:
    """The bytes of the scales, with the length before them, and of the levels."""
    scales = min(_SCALE_BYTES * size.out_channels + _FRAME, _raw(size.scale_bytes))
    levels = min(round(coded_bits(size.bits) * size.weights / 8) + _FRAME, _raw(size.code_bytes))
    return 4 + scales, levels


def _most(size: LayerSize) -> int:
    return 4 + _raw(size.scale_bytes) + _raw(size.code_bytes)


def _raw(content: int) -> int:
    """A frame of blocks that could not be compressed."""
    return content + _MOST_FRAME + _BLOCK_HEADER * -(-content // _BLOCK)
