"""Solved blocks on disk, so that killed work continues where it was and ends with the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitsfusion.calibration.layer import CalibratedLayer
from bitsfusion.calibration.trees import load_tree, save_tree

_FIELDS = ("bits", "codes", "scale", "bias", "error")


@dataclass(frozen=True)
class BlockJournal:
    """A file for every solved block, whole or not there.

    Fields:
        folder: its name stands for all that the result depends on; whoever chooses it sees to that.
    """

    folder: Path

    def read(self, index: int) -> dict[str, CalibratedLayer] | None:
        """The layers of block number `index`; None if it is not solved yet."""
        if not self._file(index).is_file():
            return None
        saved: Any = load_tree(self._file(index), torch.device("cpu"))
        return {name: CalibratedLayer(**fields) for name, fields in saved.items()}

    def write(self, index: int, layers: Mapping[str, CalibratedLayer]) -> None:
        """Keeps a block's layers; on the disk on return.

        Raises:
            BitsFusionError: the disk.
        """
        fields = {name: {field: getattr(layer, field) for field in _FIELDS} for name, layer in layers.items()}
        save_tree(self._file(index), fields)

    def _file(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"
