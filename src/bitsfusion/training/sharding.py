"""Weights, gradients and moments in parts over the processes of a launch (FSDP2), and whole again for files.

Each block is gathered in float32 for its own forward and backward; autocast casts to 16 bits after the quantizer,
so that what is trained is what is served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bitsfusion.architectures.registry import denoiser_of


def shard(student: nn.Module) -> None:
    """Spreads the student's parameters over the processes, in place; every process holds the whole student before."""
    for unit in denoiser_of(student).units(student):
        fully_shard(unit)
    fully_shard(student)


def is_sharded(model: nn.Module) -> bool:
    """Whether the model is sharded."""
    return isinstance(model, FSDPModule)


def synchronize(model: nn.Module, on: bool) -> None:
    """Whether the next backward pass of a sharded model adds up gradients over the processes."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(on)


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name, gathered from all processes, which must all ask; nothing where not `keep`."""
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            yield name, full.detach().cpu() if full is not tensor else full.detach()


def shard_of(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of `value` where `parameter` is in parts and has its shape; `value` itself otherwise."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


@torch.no_grad()
def load_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`model.load_state_dict(tensors)` for a sharded model.

    Raises:
        RuntimeError: other names or shapes.
    """
    own = model.state_dict()
    model.load_state_dict(
        {name: shard_of(value, own[name]) if name in own else value for name, value in tensors.items()}
    )
