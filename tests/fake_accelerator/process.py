"""Runs programs of `programs.py` on the fake accelerator, each in a process of its own.

    python -m tests.fake_accelerator.process LIBRARY

A line {"program", "folder"} on standard input is answered by a line {"result"} or {"error"}. Modules are imported once:
each program's process is a fork of this one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from .device import Accelerator


def main() -> None:
    accelerator = Accelerator(Path(sys.argv[1]))
    programs = importlib.import_module(".programs", __package__)
    _say(json.dumps({"ready": str(accelerator.device)}))
    for line in sys.stdin:
        asked = json.loads(line)
        answer = Path(asked["folder"]) / "answer.json"
        child = os.fork()
        if child == 0:
            _run(getattr(programs, asked["program"]), accelerator, answer)
        _, status = os.waitpid(child, 0)
        text = answer.read_text() if answer.exists() else json.dumps({"error": f"the process ended with {status}"})
        _say(text)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _run(program, accelerator: Accelerator, answer: Path) -> None:
    os.dup2(2, 1)  # what a program prints is no answer
    try:
        said = {"result": program(accelerator, answer.parent)}
    except BaseException as error:
        places = "".join(traceback.format_tb(error.__traceback__))
        said = {"error": f"{places}{type(error).__name__}: {str(error)[:1000]}"}
    answer.write_text(json.dumps(said))
    os._exit(0)  # torch's threads for the device would abort a common exit


if __name__ == "__main__":
    main()
