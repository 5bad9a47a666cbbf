"""The processes of one launch (`accelerate launch`, torchrun) that work on one run folder together."""

from __future__ import annotations

import atexit
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

Value = TypeVar("Value")


def on_cpu() -> bool:
    """Whether to compute on the CPU: no accelerator here, or `accelerate launch --cpu`."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


class Ranks:
    """This process among those of its launch; alone without one. Joins the others when it is made."""

    def __init__(self) -> None:
        self._state = PartialState(cpu=on_cpu())
        if self.count > 1:  # its threads must end before the interpreter does, which crashes otherwise now and then
            atexit.register(self._state.destroy_process_group)  # does nothing the second time

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
