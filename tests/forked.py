"""Processes for a test to kill, limit or join: forks of this one, which has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from accelerate.state import AcceleratorState

CONTEXT: Any = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "fork")
"""macOS' libraries don't bear a fork."""


def start(work: Callable[..., object], *arguments: object, processes: int = 1) -> list[BaseProcess]:
    """`work(*arguments)` in a process, or in several that find each other as torchrun's do."""
    port = _free_port() if processes > 1 else None
    started = [
        CONTEXT.Process(target=_work, args=(work, arguments, rank, processes, port)) for rank in range(processes)
    ]
    for process in started:
        process.start()
    return started


def ended(started: Sequence[BaseProcess], seconds: float = 600) -> int:
    """Waits until all have ended; when one fails the others are killed. Its exit code (less than 0: a signal), or 0."""
    try:
        running = {process.sentinel: process for process in started}
        while running:
            done = wait(list(running), seconds)
            assert done, f"still running after {seconds} s"
            for process in [running.pop(sentinel) for sentinel in done if sentinel in running]:
                process.join()
                if process.exitcode:
                    return int(process.exitcode)
        return 0
    finally:
        for process in started:
            process.kill()
            process.join()


def run(work: Callable[..., object], *arguments: object, processes: int = 1) -> int:
    """The exit code of `work(*arguments)` in processes of its own."""
    return ended(start(work, *arguments, processes=processes))


def _work(work: Callable[..., object], arguments: tuple[object, ...], rank: int, processes: int, port: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    if processes > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in (ranks | places).items()})
    work(*arguments)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
