"""The classes through which transformers' own `from_pretrained` and `save_pretrained` handle a packed text encoder.

transformers' loader moves tensors from the file into the model one by one and asks a quantizer about their shapes
alone. So the headers are checked before it starts, it puts the payloads where the buffers will be, and these give way
to what they decode to when it is done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitsfusion.artifact.guards import guard
from bitsfusion.artifact.payload import check_others
from bitsfusion.artifact.reader import open_tensors
from bitsfusion.artifact.saving import saved_tensors
from bitsfusion.artifact.schema import PACKED_SUFFIX, QUANT_METHOD, PackedConfig, parse_config
from bitsfusion.artifact.tensors import as_arrays, decode_layers
from bitsfusion.artifact.verify import check_stored
from bitsfusion.errors import ArtifactError, InputError


class BitsFusionTextConfig(QuantizationConfigMixin):
    """`quantization_config` as transformers hands it round. Field: content, the checked one of a packed folder."""

    def __init__(self, **values: Any) -> None:
        """Takes the JSON object's keys.

        Raises:
            ArtifactError: see `parse_config`.
        """
        self.quant_method = QUANT_METHOD
        self.content: PackedConfig = parse_config(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, the same that was read."""
        return self.content.model_dump(mode="json")

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`: nothing is a default."""
        return self.to_dict()


class BitsFusionTextQuantizer(HfQuantizer):
    """Loads and saves packed text encoders; it does not pack dense ones (that is `bitsfusion init`)."""

    requires_calibration = True

    def __init__(self, quantization_config: BitsFusionTextConfig, **kwargs: Any) -> None:
        """Raises InputError for a model that is not packed."""
        if not kwargs.get("pre_quantized", True):
            raise InputError(
                "quantization_config: got bitsfusion for a dense model, wanted a packed one: pack it first with "
                "`bitsfusion init MODEL --recipe sd15 --whole --out DIR`, then load DIR"
            )
        super().__init__(quantization_config, **kwargs)
        self.content = quantization_config.content
        self.dtype = torch.float32
        self._expected: frozenset[str] = frozenset()
        self._others: dict[str, Tensor] = {}

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What biases, norms and activations are computed in, as asked for; bits stay bits."""
        self.dtype = dtype
        return dtype

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuses a device map with a disk in it: bytes there could not be decoded."""
        device_map = kwargs.get("device_map")
        for place, device in device_map.items() if isinstance(device_map, dict) else ():
            if device == "disk":
                raise InputError(f"device_map: got disk for {place or 'the model'}, wanted devices or cpu")

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Whether the tensor in the file has another shape than the one in memory."""
        return param_name.endswith(PACKED_SUFFIX)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        """Makes the layers packed ones, and checks the files before transformers reads them.

        Raises:
            ArtifactError: a file that is no safetensors file or pickled, a tensor (named) too many, too few, of another
                dtype or shape, or values beside the packed layers that are not those that were written.
        """
        from bitsfusion.artifact.skeleton import in_memory, make_packed

        make_packed(model, self.content)
        expected = in_memory(model)
        self._expected = frozenset(expected)
        files = [Path(file) for file in kwargs.get("checkpoint_files") or ()]
        for file in files:
            if file.suffix != ".safetensors":
                raise ArtifactError(f"{file}: got no safetensors file, wanted one")
        with open_tensors(self.content, files) as tensors:
            check_stored(expected, tensors)
            others = {name for name in expected if not name.endswith(PACKED_SUFFIX)}
            self._others = {name: torch.from_numpy(tensors.tensor(name).copy()) for name in others}
        check_others(as_arrays(self._others), self.content.others_sha256)
        for module in model.modules():  # nothing is missing: only rotary tables are for transformers to compute
            module._is_hf_initialized = not _is_rotary(module)  # type: ignore[assignment]
        for name in self.content.layers:
            model.get_submodule(name).compute_dtype = self.dtype  # type: ignore[assignment]

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in self.content.layers}
        payloads = ((name, layers[name].packed, entry) for name, entry in self.content.layers.items())
        for name, buffer in decode_layers(payloads):
            layers[name].packed = buffer.to(layers[name].packed.device)
        for key, value in model.named_buffers():
            if key not in self._expected and not _is_rotary(model.get_submodule(key.rpartition(".")[0])):
                _count(key, value)
        # transformers would refuse `.half()` and `.float()`. Here only floating tensors change.
        model.is_quantized = False  # type: ignore[assignment]
        guard(model)

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `save_pretrained` writes; see `saved_tensors`."""
        return saved_tensors(model.state_dict(), self._expected, self.content, self._others), {}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        """See `dense.make_dense`; the dtype is the one computed in."""
        from bitsfusion.artifact.dense import make_dense

        make_dense(model)
        self._others.clear()
        return model

    def is_serializable(self) -> bool:
        """Yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters may train on top; packed weights do not."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Unpacking is an operator of its own."""
        return True


def _is_rotary(module: nn.Module) -> bool:
    """Whether a module holds frequencies of rotary positions, which its config decides."""
    return "RotaryEmbedding" in type(module).__name__


def _count(name: str, value: Tensor) -> None:
    """Fills the one kind of buffer that no file holds: position numbers [1, n], from 0 on."""
    if name.rpartition(".")[2] != "position_ids":
        raise ArtifactError(f"{name}: got a buffer that no file holds, wanted position_ids alone")
    value.copy_(torch.arange(value.shape[-1], device=value.device).expand_as(value))


auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = BitsFusionTextConfig
auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = BitsFusionTextQuantizer
