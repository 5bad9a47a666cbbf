"""The run folder: which steps are done, from what they were made, and what must be done again."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.files import read_json, sha256_file, sha256_folder, sha256_json, write_json

SCHEMA_VERSION = 1


class RunFolder:
    """Steps and their records, `steps/NAME.json`: the SHA-256 of what went in and of each output.

    A step is done when its record has the present inputs and its outputs are as recorded. Work begun on
    other inputs is removed before the step starts again; work begun on the same inputs is left for the step
    to go on from.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: got a file, wanted a run folder or a new name")
        try:
            (self.path / "steps").mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "steps" / "lock", "w")  # noqa: SIM115 (held until close)
        except OSError as error:
            raise BitsFusionError(f"{self.path}: could not be written ({error.strerror})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{self.path}: another process is working in this run folder") from None

    def close(self) -> None:
        """Lets other processes use the folder."""
        self._lock.close()

    def step(self, name: str, inputs: Mapping[str, Any], outputs: Sequence[str], work: Callable[[], None]) -> bool:
        """Runs `work` unless the step is done; returns whether it ran.

        Args:
            name: of the step.
            inputs: JSON, everything the outputs depend on.
            outputs: files and folders that `work` makes, relative to the run folder.
            work: makes them; goes on from what an interrupted call left of them.
        """
        wanted = sha256_json(inputs)
        if self._done(name, wanted, outputs):
            return False
        begun = self.path / "steps" / f"{name}.begun.json"
        if not begun.exists() or read_json(begun).get("inputs_sha256") != wanted:
            for output in outputs:
                _remove(self.path / output)
            write_json(begun, {"schema_version": SCHEMA_VERSION, "inputs_sha256": wanted})
        started = time.monotonic()
        work()
        record = {
            "schema_version": SCHEMA_VERSION,
            "step": name,
            "inputs": dict(inputs),
            "inputs_sha256": wanted,
            "outputs": {output: _sha256(self.path / output) for output in outputs},
            "seconds": round(time.monotonic() - started, 2),
        }
        write_json(self._record(name), record)
        begun.unlink()
        return True

    def made(self, name: str) -> Mapping[str, str]:
        """The outputs of a finished step with their SHA-256, for the inputs of the next one."""
        outputs: Mapping[str, str] = read_json(self._record(name))["outputs"]
        return outputs

    def seconds(self, name: str) -> float:
        """How long a finished step's last call took."""
        return float(read_json(self._record(name))["seconds"])

    def _record(self, name: str) -> Path:
        return self.path / "steps" / f"{name}.json"

    def _done(self, name: str, inputs_sha256: str, outputs: Sequence[str]) -> bool:
        if not self._record(name).exists():
            return False
        record = read_json(self._record(name))
        if record.get("inputs_sha256") != inputs_sha256 or list(record["outputs"]) != list(outputs):
            return False
        return all(
            (self.path / output).exists() and _sha256(self.path / output) == sha256
            for output, sha256 in record["outputs"].items()
        )


def _sha256(path: Path) -> str:
    return sha256_folder(path) if path.is_dir() else sha256_file(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
