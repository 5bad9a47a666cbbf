"""The classes through which diffusers' own `from_pretrained` and `save_pretrained` handle a packed model.

The dense model is never built: before loading, its layers on meta give way to packed ones whose buffers have the
exact shape that each decoded tensor has, and diffusers' default loader fills them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from bitsfusion.artifact.guards import guard, guard_cached
from bitsfusion.artifact.limits import check_memory
from bitsfusion.artifact.payload import check_others
from bitsfusion.artifact.saving import saved_tensors
from bitsfusion.artifact.schema import PACKED_SUFFIX, QUANT_METHOD, PackedConfig, parse_config
from bitsfusion.artifact.tensors import as_arrays, decode_layers
from bitsfusion.errors import ArtifactError, InputError


class BitsFusionMethod(str, Enum):
    """The method's name, in the form that diffusers reads it."""

    BITSFUSION = QUANT_METHOD


class BitsFusionConfig(QuantizationConfigMixin):
    """`quantization_config` as diffusers hands it round.

    Fields:
        content: the checked one of a packed folder. None where a user only names the method, by `BitsFusionConfig()`:
            a packed folder's own holds then, and a dense model is refused.
    """

    def __init__(self, /, **values: Any) -> None:
        """Takes the JSON object's keys.

        Raises:
            ArtifactError: see `parse_config`.
        """
        self.quant_method = BitsFusionMethod.BITSFUSION
        self.content: PackedConfig | None = parse_config(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, the same that was read."""
        return {"quant_method": QUANT_METHOD} if self.content is None else self.content.model_dump(mode="json")

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`: nothing is a default."""
        return self.to_dict()


class BitsFusionQuantizer(DiffusersQuantizer):
    """Loads and saves packed models; it does not pack dense ones (that is `bitsfusion init` and `pack`).

    Tensors beside the packed layers (biases, norms, time features: a few MB) are kept as in the file besides, so that a
    model that computes in half precision is saved as it was packed, not rounded.
    """

    required_packages = ["accelerate", "zstandard"]  # noqa: RUF012
    requires_calibration = True

    def __init__(self, quantization_config: BitsFusionConfig, **kwargs: Any) -> None:
        """Raises InputError for a model that is not packed."""
        if quantization_config.content is None or not kwargs.get("pre_quantized", True):
            raise InputError(
                "quantization_config: got bitsfusion for a dense model, wanted a packed one: pack it first with "
                "`bitsfusion init MODEL --recipe uniform:2 --out DIR`, then load DIR"
            )
        super().__init__(quantization_config, **kwargs)
        self.content = quantization_config.content
        self.dtype = torch.float32
        self.dequantized = False
        self._expected: frozenset[str] = frozenset()
        self._loaded: set[str] = set()
        self._others: dict[str, Tensor] = {}

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """float32 unless asked otherwise: what biases, norms and activations are computed in."""
        self.dtype = torch_dtype or torch.float32
        return self.dtype

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuses a device map with a disk in it: there diffusers can put parameters, but no buffers."""
        device_map = kwargs.get("device_map")
        for place, device in device_map.items() if isinstance(device_map, dict) else ():
            if device == "disk":
                raise InputError(
                    f"device_map: got disk for {place or 'the model'}, wanted devices or cpu: to offload packed bits "
                    "to a disk, load first, then accelerate.disk_offload(model, folder, offload_buffers=True)"
                )

    def get_cuda_warm_up_factor(self) -> int:
        """Elements are bytes, diffusers counts them in the compute dtype."""
        return max(1, self.dtype.itemsize)

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuses them: a tensor with invented values is a wrong weight.

        Raises:
            ArtifactError: names the layer.
        """
        self._refuse_missing(missing_keys)
        return missing_keys

    def maybe_update_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decodes a file's layers, a few at a time; each takes its payload's place.

        Raises:
            ArtifactError: names the layer.
        """
        for key in state_dict:
            if key not in self._expected:
                name = key.removesuffix(PACKED_SUFFIX)
                raise ArtifactError(f"{name}: got a tensor {key} that the model does not have")
            self._loaded.add(key)
            if not key.endswith(PACKED_SUFFIX):
                # A view would keep the whole file mapped.
                self._others[key] = state_dict[key] = state_dict[key].clone()
        names = [key.removesuffix(PACKED_SUFFIX) for key in state_dict if key.endswith(PACKED_SUFFIX)]
        check_memory(
            sum(self.content.layers[name].size.bytes_in_memory for name in names),
            sum(state_dict[name + PACKED_SUFFIX].numel() for name in names),
        )
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
        self._refuse_missing(self._expected - self._loaded)
        check_others(as_arrays(self._others), self.content.others_sha256)
        # diffusers would refuse `.to(dtype)`, and with it `from_pipe`. Here only floating tensors change.
        model.is_quantized = False  # type: ignore[assignment]
        guard(model)
        model.hf_quantizer = self  # diffusers sets it next; adapters ask for it

    def _refuse_missing(self, keys: Iterable[str]) -> None:
        for key in sorted(keys):
            raise ArtifactError(f"{key.removesuffix(PACKED_SUFFIX)}: got no tensor {key} in the file")

    def get_state_dict_and_metadata(
        self, state_dict: Mapping[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `save_pretrained` writes: the tensors of the packed folder, bit for bit, whatever dtype is computed in.

        Raises:
            InputError: a pickle is asked for, adapters are loaded, the model is offloaded, or a tensor has changed.
        """
        if not safe_serialization:
            raise InputError("save_pretrained: got safe_serialization=False, wanted True: no pickle is written")
        return saved_tensors(state_dict, self._expected, self.content, self._others), {}

    def dequantize(self, model: nn.Module) -> nn.Module:
        """See `dense.make_dense`. With cached time features the quantizer stays with the model and refuses to save."""
        made: nn.Module = super().dequantize(model)
        vars(made).pop("is_quantized", None)
        if self.content.stores_features:
            made.hf_quantizer = self
            guard_cached(made)
        return made

    def _dequantize(self, model: Any) -> nn.Module:
        if self.dequantized:
            raise InputError("dequantize: got a model that is dense already, wanted a packed one")
        from bitsfusion.artifact.dense import make_dense

        make_dense(model)
        notes = ("quantization_config", "_pre_quantization_dtype")
        model._internal_dict = FrozenDict({key: value for key, value in model.config.items() if key not in notes})
        self.dequantized = True
        self._others.clear()
        dense: nn.Module = model
        return dense

    @property
    def is_serializable(self) -> bool:
        """Yes; but a dense model with cached time features (InputError) is no plain UNet any more."""
        from bitsfusion.artifact.skeleton import covered_steps

        if self.dequantized:
            raise InputError(
                "save_pretrained: got a dense UNet whose time layers were replaced by stored features of "
                f"{covered_steps(self.content)}, wanted a packed one or one packed with the time layers kept "
                "(--cover any): no plain UNet folder can hold the features, nor can the layers be had back from them"
            )
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters may train on top; packed weights do not."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whole, without a graph break: unpacking and the look-up of time features are operators of their own."""
        return True


auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = BitsFusionConfig
auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = BitsFusionQuantizer
