"""The processes of one launch (`accelerate launch`, torchrun) that work on one run folder together."""

from __future__ import annotations

import atexit
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from bitsfusion.devices import resolve
from bitsfusion.errors import InputError

Value = TypeVar("Value")


class Ranks:
    """This process among those of its launch; alone without one. Joins the others when it is made.

    Args:
        device: where it computes; `resolve()` unless given. Accelerate computes there from now on.

    Raises:
        InputError: the processes of the launch have joined on another type of device already.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        wanted = device or resolve()
        self._state = PartialState(cpu=wanted.type == "cpu")
        if self.count == 1:
            self._state.device = wanted
        elif self._state.device.type != wanted.type:
            raise InputError(
                f"device: got {wanted.type} in a launch on {self._state.device.type}, wanted the launch's (--cpu?)"
            )
        if self.count > 1:  # its threads must end before the interpreter does, which crashes otherwise now and then
            atexit.register(self._state.destroy_process_group)  # does nothing the second time

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self._state.device
        return device

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes."""
        return bool(self._state.is_main_process)

    @property
    def count(self) -> int:
        """How many there are, over all machines."""
        return int(self._state.num_processes)

    def wait(self) -> None:
        """Returns when all have come here."""
        self._state.wait_for_everyone()

    def agree(self, value: Value) -> Value:
        """The main process's `value`, in every process."""
        if self.count == 1:
            return value
        values = [value]
        broadcast_object_list(values)
        return values[0]
