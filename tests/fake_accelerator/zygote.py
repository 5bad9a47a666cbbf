"""Runs programs of `programs.py` on the fake accelerator, each in a process of its own.

A device cannot be taken back from a process, and autograd counts the devices once a process, at the first gradient. So
one fork of the tests' process, made before any test has run, takes the device, and forks again for each program.
"""

from __future__ import annotations

import importlib
import json
import os
import traceback
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from .device import Accelerator


class Zygote:
    """The process that has, or will have, the device."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        self._process = os.fork()
        if self._process == 0:
            self._pipe.close()
            try:
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()

    def run(self, library: Path, program: str, folder: Path) -> dict[str, Any]:
        """{"result"} of a program that writes into `folder`, or {"error"}."""
        self._pipe.send((library, program, folder))
        answer: dict[str, Any] = self._pipe.recv()
        return answer

    def close(self) -> None:
        self._pipe.close()
        os.waitpid(self._process, 0)


def _serve(pipe: Connection) -> None:
    accelerator = None
    while True:
        try:
            library, program, folder = pipe.recv()
        except EOFError:
            return
        accelerator = accelerator or Accelerator(library)
        programs = importlib.import_module(".programs", __package__)
        answer = folder / "answer.json"
        child = os.fork()
        if child == 0:
            _run(getattr(programs, program), accelerator, answer)
        _, status = os.waitpid(child, 0)
        pipe.send(json.loads(answer.read_text()) if answer.exists() else {"error": f"the process ended with {status}"})


def _run(program: Any, accelerator: Accelerator, answer: Path) -> None:
    try:
        said = {"result": program(accelerator, answer.parent)}
    except BaseException as error:
        places = "".join(traceback.format_tb(error.__traceback__))
        said = {"error": f"{places}{type(error).__name__}: {str(error)[:1000]}"}
    answer.write_text(json.dumps(said))
    os._exit(0)  # torch's threads for the device would abort a common exit
