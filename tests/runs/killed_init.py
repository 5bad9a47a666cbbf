"""`init --calibrate` that kills itself. Run by test_calibration.py.

    python -m tests.runs.killed_init MODEL OUT STEP DONE

It dies when STEP ("calibrate" or "pack") says that DONE of its parts are done.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.packing import init_pipeline


def calibrated(model: str, out: Path, progress: ProgressSink = SILENT) -> None:
    """The command, with few pictures."""
    job = CalibrationJob(settings=CalibrationSettings(samples=3, steps=2))
    init_pipeline(model, out, recipe="uniform:2", calibration=job, progress=progress)


class _Deadly(ProgressSink):
    def __init__(self, step: str, done: int) -> None:
        self._at = step, done

    def update(self, step: str, done: int, total: int, note: str = "") -> None:
        if (step, done) >= self._at and step == self._at[0]:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    calibrated(sys.argv[1], Path(sys.argv[2]), _Deadly(sys.argv[3], int(sys.argv[4])))
