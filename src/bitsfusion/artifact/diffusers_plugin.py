"""The classes through which diffusers' own `from_pretrained` and `save_pretrained` handle a packed model.

The dense model is never built: before loading, its layers on meta give way to packed ones whose buffers have the
exact shape that each decoded tensor has, and diffusers' default loader fills them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from bitsfusion.artifact.payload import check_others, decode_layers, encode_layer
from bitsfusion.artifact.schema import PACKED_SUFFIX, QUANT_METHOD, ROWS_TENSOR, PackedConfig, parse_config
from bitsfusion.errors import ArtifactError


class BitsFusionMethod(str, Enum):
    """The method's name, in the form that diffusers reads it."""

    BITSFUSION = QUANT_METHOD


class BitsFusionConfig(QuantizationConfigMixin):
    """`quantization_config` as diffusers hands it round; `content` is the checked one."""

    def __init__(self, **values: Any) -> None:
        """Takes the JSON object's keys.

        Raises:
            ArtifactError: see `parse_config`.
        """
        self.quant_method = BitsFusionMethod.BITSFUSION
        self.content: PackedConfig = parse_config(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, the same that was read."""
        return self.content.model_dump(mode="json")

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`: nothing is a default."""
        return self.to_dict()


class BitsFusionQuantizer(DiffusersQuantizer):
    """Loads and saves packed models; it does not pack dense ones (that is `bitsfusion pack`)."""

    required_packages = ["accelerate", "zstandard"]  # noqa: RUF012
    requires_calibration = True

    def __init__(self, quantization_config: BitsFusionConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.content = quantization_config.content
        self.dtype = torch.float32
        self._expected: frozenset[str] = frozenset()
        self._others: dict[str, Tensor] = {}

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """float32 unless asked otherwise: what biases, norms and activations are computed in."""
        self.dtype = torch_dtype or torch.float32
        return self.dtype

    def adjust_target_dtype(self, torch_dtype: torch.dtype) -> torch.dtype:
        """What `device_map="auto"` counts with: nearly everything is bytes."""
        return torch.uint8

    def get_cuda_warm_up_factor(self) -> int:
        """Elements are bytes, diffusers counts them in the compute dtype."""
        return max(1, self.dtype.itemsize)

    def maybe_update_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decodes a file's layers, a few at a time; each takes its payload's place.

        Raises:
            ArtifactError: names the layer.
        """
        for key in state_dict:
            if key not in self._expected:
                name = key.removesuffix(PACKED_SUFFIX)
                raise ArtifactError(f"{name}: got a tensor {key} that the model does not have")
            if not key.endswith(PACKED_SUFFIX):
                # A view would keep the whole file mapped.
                self._others[key] = state_dict[key] = state_dict[key].clone()
        names = [key.removesuffix(PACKED_SUFFIX) for key in state_dict if key.endswith(PACKED_SUFFIX)]
        payloads = ((name, state_dict[name + PACKED_SUFFIX], self.content.layers[name]) for name in names)
        for name, buffer in decode_layers(payloads):
            state_dict[name + PACKED_SUFFIX] = buffer
        return state_dict

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        from bitsfusion.artifact.skeleton import make_packed

        make_packed(model, self.content)
        self._expected = frozenset(model.state_dict())
        for name in self.content.layers:
            model.get_submodule(name).compute_dtype = self.dtype  # type: ignore[assignment]
        model.config.quantization_config = self.quantization_config  # type: ignore[union-attr]

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_meta:
                raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: got no tensor {name} in the file")
        check_others(self._others, self.content.others_sha256)
        self._others.clear()

    def get_state_dict_and_metadata(
        self, state_dict: Mapping[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `save_pretrained` writes: packed buffers under zstd again, time features in 16 bits."""
        saved = dict(state_dict)
        for name, entry in self.content.layers.items():
            saved[name + PACKED_SUFFIX] = encode_layer(saved[name + PACKED_SUFFIX], entry.shape[0])
        if ROWS_TENSOR in saved:
            saved[ROWS_TENSOR] = saved[ROWS_TENSOR].half()
        return saved, {}

    @property
    def is_serializable(self) -> bool:
        """Only as loaded in float32: half precision has rounded biases and norms, so the hashes would not hold."""
        return self.dtype == torch.float32

    @property
    def is_trainable(self) -> bool:
        """Adapters may train on top; packed weights do not."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Not claimed: the reference unpacking was not measured under `torch.compile`."""
        return False


def register() -> None:
    """Adds both classes to diffusers' registry."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = BitsFusionConfig
    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = BitsFusionQuantizer
