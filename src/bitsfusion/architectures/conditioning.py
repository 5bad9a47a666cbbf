"""What a denoiser is given besides the noisy sample and the time step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Keyword arguments of a denoiser's forward, one row a sample.

    Fields:
        tensors: by the keyword's name, each [n, ...]; `added_cond_kwargs.text_embeds` is an entry of the dictionary
            `added_cond_kwargs`. Hidden states are floating, masks and token ids whole numbers.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.tensors.values()))) if self.tensors else 0

    def keywords(self) -> dict[str, Any]:
        """As the forward takes them: names with a dot as nested dictionaries."""
        found: dict[str, Any] = {}
        for name, tensor in self.tensors.items():
            outer, _, inner = name.partition(".")
            if inner:
                found.setdefault(outer, {})[inner] = tensor
            else:
                found[name] = tensor
        return found

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """On a device; floating tensors in `dtype` where one is given."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """`function` of every tensor."""
        return Conditioning({name: function(tensor) for name, tensor in self.tensors.items()})

    def rows(self, chosen: slice | Tensor) -> Conditioning:
        """Some of the rows."""
        return self.map(lambda tensor: tensor[chosen])

    def expand(self, count: int) -> Conditioning:
        """The single row `count` times, without copies."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of all `parts`, which have the same names and row shapes."""
        import torch

        return Conditioning({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})
