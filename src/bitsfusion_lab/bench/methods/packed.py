"""A packed folder, read by diffusers through this package."""

from __future__ import annotations

from torch import Tensor, nn

from bitsfusion_lab.bench.methods.base import Method


class Packed(Method):
    """See `Method`. There is nothing to prepare: the folder is what the user asks about."""

    library = "bitsfusion"

    def __init__(self) -> None:
        super().__init__(self.library)

    def warm_up(self) -> None:
        import bitsfusion.artifact.skeleton  # noqa: F401

    def weight(self, layer: nn.Module) -> Tensor:
        return layer.weight  # type: ignore[return-value]
