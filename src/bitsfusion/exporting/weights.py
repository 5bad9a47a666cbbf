"""A packed model opened for export: its layers one at a time, checked, and all else as float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitsfusion.artifact.payload import check_others
from bitsfusion.artifact.reader import PackedFolder, Tensors
from bitsfusion.artifact.schema import TIME_TENSORS, PackedEntry
from bitsfusion.artifact.skeleton import empty_model, make_packed
from bitsfusion.artifact.verify import check_stored
from bitsfusion.diffusion.time_features import TimeFeatureRows
from bitsfusion.diffusion.time_features.fitted_layers import TimeLayers, fitted_time_layers
from bitsfusion.errors import InputError
from bitsfusion.packing.radix import unpack


@dataclass(frozen=True)
class PackedLayer:
    """One packed layer. Fields: its name, what the config says of it, and its buffer as in memory."""

    name: str
    entry: PackedEntry
    buffer: Tensor

    @property
    def scale(self) -> Tensor:
        """[out] float32."""
        return self.buffer[: self.entry.size.scale_bytes].view(torch.float32)

    @property
    def levels(self) -> Tensor:
        """[out, in ...] int16."""
        codes = self.buffer[self.entry.size.scale_bytes :]
        return unpack(codes, self.entry.size.weights, self.entry.bits).view(self.entry.shape)

    @property
    def weight(self) -> Tensor:
        """[out, in ...] float32."""
        shape = (-1, *(1 for _ in self.entry.shape[1:]))
        return self.levels.float() * self.scale.view(shape)


class PackedWeights:
    """The tensors of an open packed model.

    Fields:
        dense: the dense model on meta.
        others: every tensor beside the packed layers but stored time features, float32.
    """

    def __init__(self, folder: PackedFolder, tensors: Tensors) -> None:
        """Checks names, shapes and the values beside the layers; raises ArtifactError."""
        self._folder, self._tensors = folder, tensors
        check_stored(folder.expected(), tensors)
        arrays = {name: tensors.tensor(name) for name in tensors.names if not _is_packed(name)}
        check_others(arrays, folder.config.others_sha256)
        stored = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.dense: Any = empty_model(folder.model_config)
        self.others: Mapping[str, Tensor] = {
            name: tensor for name, tensor in stored.items() if name not in TIME_TENSORS
        }
        self._features = {name: tensor for name, tensor in stored.items() if name in TIME_TENSORS}

    def layers(self) -> Iterator[PackedLayer]:
        """Every packed layer; raises ArtifactError with the layer's name."""
        for name, buffer in self._tensors.buffers():
            yield PackedLayer(name, self._folder.config.layers[name], torch.from_numpy(buffer))

    def time_layers(self, dtype: torch.dtype) -> TimeLayers | None:
        """Ordinary time layers in the place of stored features; None where the model has its own, or needs none.

        Raises:
            InputError: as `fitted_time_layers`.
        """
        if not self._features:
            return None
        if self._folder.architecture.timing is not None:
            raise InputError(
                f"time features: got a {self._folder.architecture.name} whose modulation was replaced by stored "
                "features, wanted one with its layers: pack with --cover any"
            )
        packed = empty_model(self._folder.model_config)
        make_packed(packed, self._folder.config)
        placed: Any = packed.time_proj
        values = {name.removeprefix("time_proj."): tensor.float() for name, tensor in self._features.items()}
        placed.load_state_dict(values, assign=True)
        if isinstance(placed, TimeFeatureRows):
            steps, features = torch.tensor(placed.coverage.steps, dtype=torch.float32), placed.rows
        else:
            steps = torch.arange(max(0, placed.knots.start), placed.knots.end + 1, dtype=torch.float32)
            features = placed(steps)
        return fitted_time_layers(self.dense, steps, features, dtype)

    @property
    def time_note(self) -> str | None:
        """What to say of fitted time layers; None where there are none."""
        kind = self._folder.config.time_features.kind
        covered = {
            "basis": "the stored features of every step",
            "cached": f"the stored features of {len(self._folder.config.time_features.steps)} steps; others are new",
        }
        return f"time layers fitted to {covered[kind]}" if kind in covered else None


def _is_packed(name: str) -> bool:
    return name.endswith(".packed")


@contextmanager
def open_weights(folder: PackedFolder) -> Iterator[PackedWeights]:
    """The weights of a packed model, while its files are open."""
    with folder.tensors() as tensors:
        yield PackedWeights(folder, tensors)
