"""The other end of a worker: starts the process, asks, and turns its death into one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

from bitsfusion_lab.bench.bench_file import Dtype


class MethodFailed(Exception):
    """A method could not do what was asked; one line with the reason."""


class WorkerProcess:
    """A fresh process for one method. Starting returns at once; the first command waits for the imports."""

    def __init__(self, method: str, dtype: Dtype, threads: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed on exit)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bitsfusion_lab.bench.worker", method, dtype.value, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._ready = False

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            stream.close()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Has the worker do a command (see `bitsfusion_lab.bench.worker.Worker`) and waits for the answer.

        Raises:
            MethodFailed: it raised, or the process died.
        """
        if not self._ready:
            self._answer()
            self._ready = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its death is reported where the answer is missing
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MethodFailed(self._death())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise MethodFailed(reply["error"])
        return reply

    def _death(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"the process was ended by {signal.Signals(-code).name}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"the process ended with code {code}" + (f": {lines[-1]}" if lines else "")
