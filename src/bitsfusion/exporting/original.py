"""A packed denoiser as plain tensors in the layout of its first repository, for programs that hold models in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bitsfusion.architectures.original import original_layout
from bitsfusion.architectures.registry import DENOISER_COMPONENTS
from bitsfusion.artifact.reader import PackedFolder, open_components
from bitsfusion.errors import InputError
from bitsfusion.exporting.weights import open_weights
from bitsfusion.pipelines.resolve import resolve


def packed_denoiser(path: Path) -> PackedFolder:
    """The packed denoiser of a pipeline's folder, or the packed model that the folder is.

    Raises:
        InputError: there is none.
    """
    found = open_components(path)
    for name in ("", *DENOISER_COMPONENTS):
        if name in found:
            return found[name]
    raise InputError(f"{path}: got no packed denoiser, wanted a packed {' or '.join(DENOISER_COMPONENTS)}")


@torch.no_grad()
def original_tensors(model: str | Path, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Every weight of a packed denoiser, unpacked layer by layer: name in the original layout -> tensor.

    A UNet's names begin with `model.diffusion_model.`, as in checkpoints. Where time features are stored, layers that
    give them take their place.

    Args:
        model: a packed pipeline or model folder, or its hub id.
        dtype: of all tensors; a weight is the packed one's float32 product, rounded once.

    Raises:
        InputError: nothing packed, a class without such a layout, time layers that cannot be fitted.
        ArtifactError: a broken folder; names the layer.
    """
    folder = packed_denoiser(resolve(model).path)
    with open_weights(folder) as weights:
        tensors = {f"{layer.name}.weight": layer.weight.to(dtype) for layer in weights.layers()}
        tensors |= {name: tensor.to(dtype) for name, tensor in weights.others.items()}
        fitted = weights.time_layers(dtype)
        tensors |= {} if fitted is None else fitted.tensors
    made = {}
    for name, source in original_layout(folder.architecture.name, folder.model_config, tensors).tensors.items():
        joined = torch.cat([tensors.pop(part) for part in source.names])
        made[name] = joined.roll(len(joined) // 2, 0) if source.swapped else joined
    return made
