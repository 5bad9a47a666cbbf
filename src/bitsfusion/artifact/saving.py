"""From a loaded packed model to the tensors of its file, for `save_pretrained` of both libraries."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from torch import Tensor

from bitsfusion.artifact.hashes import forget_hashes
from bitsfusion.artifact.payload import buffer_hash, others_hash
from bitsfusion.artifact.schema import PACKED_SUFFIX, PackedConfig
from bitsfusion.artifact.tensors import as_array, as_arrays, encode_layer
from bitsfusion.errors import InputError


def saved_tensors(
    state_dict: Mapping[str, Tensor], expected: Set[str], content: PackedConfig, others: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of the packed folder, bit for bit, whatever dtype is computed in.

    Called while a library saves, it takes away the SHA256SUMS of a packed pipeline that is saved over.

    Args:
        state_dict: of the model as it is now.
        expected: the names that it had when it was loaded.
        content: what was loaded.
        others: the tensors beside the packed layers as in the file.

    Raises:
        InputError: adapters are loaded, a tensor is offloaded or has changed.
    """
    _forget_hashes()
    for key in sorted(expected ^ state_dict.keys()):
        raise InputError(
            f"{key}: got a model with adapters or other layers than were loaded, wanted the packed one alone: "
            "save_lora_weights, then unload_lora_weights"
        )
    saved: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if tensor.is_meta:
            raise InputError(f"{key}: got a tensor that is offloaded, wanted it in memory: load without offloading")
        name = key.removesuffix(PACKED_SUFFIX)
        if name in content.layers and key != name:
            entry = content.layers[name]
            saved[key] = encode_layer(tensor, entry.shape[0])
            same = buffer_hash(as_array(key, tensor)) == entry.sha256
        else:
            saved[key] = others[key]
            same = _is_cast_of(tensor.cpu(), saved[key])
        if not same:
            raise InputError(f"{key}: got other values than were loaded, wanted those: pack the changed model anew")
    # In float32 what is computed with may be the very tensor that is kept: then only the hash tells.
    if others_hash(as_arrays({key: saved[key] for key in others})) != content.others_sha256:
        raise InputError("biases, norms: got other values than were loaded, wanted those: pack the changed model")
    return saved


def _forget_hashes() -> None:
    """Of the folder that is being written: neither library tells a quantizer which, only its `save_pretrained` knows.

    A method of ours in its place would have to hold the model, and the circle would keep the memory of a model that is
    no longer used.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "save_pretrained":
        frame = frame.f_back
    if frame is not None and "save_directory" in frame.f_locals:
        forget_hashes(Path(frame.f_locals["save_directory"]))


def _is_cast_of(tensor: Tensor, original: Tensor) -> bool:
    """Whether `tensor` is `original` in its dtype, perhaps by way of half precision."""
    ways = (original.dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(tensor, original.to(way).to(tensor.dtype)) for way in ways)
