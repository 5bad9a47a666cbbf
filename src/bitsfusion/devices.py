"""Where things compute: the one place that turns a device's name into a device and moves models there and back."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from bitsfusion.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

AUTO = "auto"
"""The name that means: the accelerator that torch finds, otherwise the CPU."""

NAME_PATTERN = r"^[a-z_0-9]+(:[0-9]+)?$"
"""How a device is written: a type of torch's with or without a number, or "auto"."""


@runtime_checkable
class HasComponents(Protocol):
    """A diffusers pipeline: its models are among its components."""

    @property
    def components(self) -> Mapping[str, Any]: ...


Models: TypeAlias = "HasComponents | nn.Module | Iterable[nn.Module | None]"


def resolve(name: str = AUTO) -> torch.device:
    """The device that a config or an option names.

    Args:
        name: "auto", "cpu", or a type that torch knows with or without a number: "cuda", "cuda:1", "mps". "auto" is the
            accelerator that torch finds, unless `accelerate launch --cpu` asks for the CPU. Without a number it is, in
            a launch of several processes, this process's own device.

    Returns:
        With its number where it is no CPU.

    Raises:
        InputError: torch knows no such type, or finds no such device here, or one number is given to a launch of
            several processes.
    """
    import torch

    if name == AUTO:
        found = None if _asked_for_cpu() else _accelerator()
        if found is None:
            return torch.device("cpu")
        name = found.type
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: got {name!r}, wanted {_choices()}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    here = _accelerator()
    if here is None or here.type != device.type:
        raise InputError(f"device: got {name!r}, and torch finds none of that type here; wanted {_choices()}")
    count = torch.accelerator.device_count()
    index: int | None = device.index
    if index is None:
        return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")) % count)
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise InputError(f"device: got {name!r} for several processes, wanted {device.type}: each takes one of its own")
    if index >= count:
        raise InputError(f"device: got {name!r}, wanted a number below {count}: that many of the type are here")
    return device


@contextlib.contextmanager
def placed(models: Models, device: torch.device) -> Iterator[None]:
    """Inside, models are on `device`; afterwards, also after an error, each is where it was.

    Args:
        models: a pipeline (all of its components), a model, or several models; None is ignored. A
            model whose parts are on several devices, that has no weights yet (meta), or that Accelerate's hooks move by
            themselves (offloading), is left alone.
        device: where they compute.
    """
    moved: list[tuple[nn.Module, torch.device]] = []
    try:
        for model in _modules(models):
            home = device_of(model)
            if home is not None and home.type != "meta" and home != device:
                moved.append((model, home))
                model.to(device)
        yield
    finally:
        for model, home in reversed(moved):
            model.to(home)


def device_of(model: nn.Module) -> torch.device | None:
    """Where all of a model's parameters and buffers are; None where that is not one device, or hooks decide it."""
    devices = {tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())}
    return devices.pop() if len(devices) == 1 and not hasattr(model, "_hf_hook") else None


def _modules(models: Models) -> list[nn.Module]:
    from torch import nn

    if isinstance(models, nn.Module):
        return [models]
    several = models.components.values() if isinstance(models, HasComponents) else models
    return [model for model in several if isinstance(model, nn.Module)]


def _asked_for_cpu() -> bool:
    """Whether `accelerate launch --cpu` has started this process."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "t", "on")


def _accelerator() -> torch.device | None:
    """The accelerator that torch finds here, without a number."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def _choices() -> str:
    found = _accelerator()
    return "auto or cpu" if found is None else f"auto, cpu or {found.type}"
