"""Writes to an unpacked weight are refused; reading it is as with any tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bitsfusion.errors import InputError
from bitsfusion.nn.read_only import ReadOnlyWeight


@pytest.fixture
def weight() -> Tensor:
    return torch.arange(6.0).view(2, 3).as_subclass(ReadOnlyWeight)


def assign_data(weight: Tensor) -> None:
    weight.data = torch.zeros(2, 3)


def add_to_data(weight: Tensor) -> None:
    weight.data += 1


def add(weight: Tensor) -> None:
    weight += 1


def set_item(weight: Tensor) -> None:
    weight[0] = 1


@pytest.mark.parametrize(
    "write",
    [
        assign_data,
        add_to_data,
        add,
        set_item,
        lambda weight: weight.mul_(2),
        lambda weight: weight.data.copy_(torch.zeros(2, 3)),
        lambda weight: weight.detach().zero_(),
        lambda weight: torch.nn.init.normal_(weight),
        lambda weight: weight.requires_grad_(),
    ],
    ids=["data", "data +=", "+=", "[]", "mul_", "data.copy_", "detach", "init", "requires_grad_"],
)
def test_writes_are_refused(weight: Tensor, write: Callable[[Tensor], object]) -> None:
    before = weight.clone()
    with pytest.raises(InputError, match="an adapter cannot be fused into packed bits"):
        write(weight)
    assert torch.equal(weight, before)


def test_reading_gives_ordinary_tensors(weight: Tensor) -> None:
    plain = torch.arange(6.0).view(2, 3)
    for made, expected in [
        (weight + 1, plain + 1),
        (weight.clone(), plain),
        (weight.half(), plain.half()),
        (torch.cat([weight, weight]), torch.cat([plain, plain])),
        (torch.zeros(2, 3).copy_(weight), plain),
        (~(weight > 1), ~(plain > 1)),
        (torch.nn.functional.linear(plain, weight), plain @ plain.T),
    ]:
        assert type(made) is Tensor and torch.equal(made, expected)
    assert weight.shape == (2, 3) and weight.dtype == torch.float32 and int(weight[0, 1]) == 1
