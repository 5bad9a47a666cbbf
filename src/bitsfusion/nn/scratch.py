"""Memory for one layer's weight at a time: a block per thread, dtype and device that the next layer overwrites."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_local = threading.local()


def scratch(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[numel] uninitialized: a part of this thread's block, which grows and never shrinks."""
    blocks: dict[tuple[torch.dtype, torch.device], Tensor] = _local.__dict__.setdefault("blocks", {})
    block = blocks.get((dtype, device))
    if block is None or block.numel() < numel:
        block = blocks[dtype, device] = torch.empty(numel, dtype=dtype, device=device)
    return block[:numel]
