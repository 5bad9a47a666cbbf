"""What a way to hold a denoiser has to offer to be measured."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.architectures.registry import class_name
from bitsfusion.io.texts import read_json


class Method:
    """One way to hold a denoiser, used as its own documentation says. Its library is imported in a worker only.

    Fields:
        name: of the row.
        library: the distribution on PyPI that does it.
        settings: what was asked of it, for the row.
    """

    library: str

    def __init__(self, name: str, **settings: Any) -> None:
        self.name = name
        self.settings: dict[str, Any] = settings

    def version(self) -> str | None:
        """The library's version; None where it is not installed."""
        return installed_version(self.library)

    def warm_up(self) -> None:
        """Imports the library, so that loading is timed without it."""

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        """Quantizes the dense model in folder `source` and saves it to the empty folder `out`, its own way."""
        raise NotImplementedError

    def load(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        """The model of a folder that `prepare` wrote, ready to run on the CPU in `dtype`: through diffusers' loader."""
        model: nn.Module = load_dense(folder, dtype)
        return model

    def weight(self, layer: nn.Module) -> Tensor:
        """The dense weight that a quantized layer computes with, of the dense layer's shape."""
        weight: Any = layer.weight
        unpacked: Tensor = weight.dequantize()
        return unpacked


def installed_version(distribution: str) -> str | None:
    """A distribution's version without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def load_dense(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """The model of a diffusers model folder, through diffusers' own loader."""
    return model_class(folder).from_pretrained(folder, torch_dtype=dtype, **options).eval()


def model_class(folder: Path) -> Any:
    """The class of diffusers that a model folder names."""
    import diffusers

    return getattr(diffusers, class_name(read_json(folder / "config.json")))


def empty_model(folder: Path) -> Any:
    """The model of a folder without its weights, on meta."""
    kind = model_class(folder)
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder))
