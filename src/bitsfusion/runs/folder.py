"""The run folder: which steps are done, on which inputs, and which must be done again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitsfusion.io.hashes import sha256_file, sha256_folder, sha256_json
from bitsfusion.io.locks import Lock
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.io.work_folder import folder_lock
from bitsfusion.pipelines.folder import CARD
from bitsfusion.training.ranks import Ranks

SCHEMA_VERSION = 1


class RunFolder:
    """Steps and their records, `steps/NAME.json`: the SHA-256 of what went in and of each output.

    A step is done when its record has the present inputs and its outputs are as recorded. Work begun on
    other inputs is removed before the step starts again; work begun on the same inputs is left for the step
    to go on from.

    The processes of one launch share the folder: the main one holds its lock, does the steps and writes their
    records; the others wait until it has done a step, and take part in those that are `joint`.
    """

    def __init__(self, path: Path, ranks: Ranks | None = None) -> None:
        """Opens the folder `path`, made if it is not there; `ranks` are those of this launch unless given."""
        self.path = Path(path)
        self.ranks = ranks or Ranks()
        self._steps_done = 0  # of this launch
        self._lock: Lock | None = None
        if self.ranks.main:
            self._lock = folder_lock(self.path, self.path / "steps" / "lock")
            self._told.unlink(missing_ok=True)
        self.ranks.wait()

    @property
    def _told(self) -> Path:
        """Where the main process counts the steps that it has done since the launch."""
        return self.path / "steps" / "launch.json"

    def close(self) -> None:
        """Lets other processes use the folder."""
        if self._lock:
            self._lock.close()

    def step(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        work: Callable[[], None],
        joint: bool = False,
    ) -> bool:
        """Runs `work` unless the step is done; returns whether it ran.

        Args:
            name: of the step.
            inputs: JSON, everything the outputs depend on.
            outputs: files and folders that `work` makes, relative to the run folder.
            work: makes them; continues from what an interrupted call left of them.
            joint: all processes of the launch call `work`, together; otherwise the main one alone.
        """
        wanted = sha256_json(inputs)
        if joint:
            return self._joint(name, wanted, inputs, outputs, work)
        self._steps_done += 1
        if not self.ranks.main:
            self._wait_for_main()
            return False
        ran = not self._done(name, wanted, outputs)
        if ran:
            started = self._begin(name, wanted, outputs)
            work()
            self._finish(name, wanted, inputs, outputs, started)
        if self.ranks.count > 1:
            write_json(self._told, {"steps_done": self._steps_done})
        return ran

    def _joint(
        self, name: str, wanted: str, inputs: Mapping[str, Any], outputs: Sequence[str], work: Callable[[], None]
    ) -> bool:
        main = self.ranks.main
        if self.ranks.agree(main and self._done(name, wanted, outputs)):
            return False
        started = self._begin(name, wanted, outputs) if main else 0.0
        self.ranks.wait()
        work()
        self.ranks.wait()
        if main:
            self._finish(name, wanted, inputs, outputs, started)
        self.ranks.wait()
        return True

    def _wait_for_main(self) -> None:
        """Waits by polling a file: a step may take hours, for which a collective operation would time out."""
        while not self._told.exists() or read_json(self._told)["steps_done"] < self._steps_done:
            time.sleep(0.2)

    def _begin(self, name: str, wanted: str, outputs: Sequence[str]) -> float:
        begun = self._begun(name)
        if not begun.exists() or read_json(begun).get("inputs_sha256") != wanted:
            for output in outputs:
                _remove(self.path / output)
            write_json(begun, {"schema_version": SCHEMA_VERSION, "inputs_sha256": wanted})
        return time.monotonic()

    def _finish(
        self, name: str, wanted: str, inputs: Mapping[str, Any], outputs: Sequence[str], started: float
    ) -> None:
        record = {
            "schema_version": SCHEMA_VERSION,
            "step": name,
            "inputs": dict(inputs),
            "inputs_sha256": wanted,
            "outputs": {output: _sha256(self.path / output) for output in outputs},
            "seconds": round(time.monotonic() - started, 2),
        }
        write_json(self._record(name), record)
        self._begun(name).unlink()

    def made(self, name: str) -> Mapping[str, str]:
        """The outputs of a finished step with their SHA-256, for the inputs of the next one."""
        outputs: Mapping[str, str] = read_json(self._record(name))["outputs"]
        return outputs

    def seconds(self, name: str) -> float:
        """How long a finished step's last call took."""
        return float(read_json(self._record(name))["seconds"])

    def _begun(self, name: str) -> Path:
        return self.path / "steps" / f"{name}.begun.json"

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
    """What `bitsfusion card` adds to a folder later does not make it another."""
    return sha256_folder(path, without=CARD) if path.is_dir() else sha256_file(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
