"""Candidates measured by processes on this machine or on several, by Ray."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from bitsfusion.errors import BitsFusionError, InputError, reason
from bitsfusion.sensitivity.table import Candidate, SensitivityRow
from bitsfusion.sensitivity.workers import Method, measured_row

LOST_LIMIT = 3
"""A candidate that has lost this many workers stops the measurement: it is likelier at fault than they are."""


class RayWorkers:
    """Processes that build the method once each and measure one candidate at a time.

    A worker that dies takes only its present candidate with it, which another one measures. Workers write
    nothing: rows come back to the caller, who keeps them.

    Args:
        build: makes the method in a worker; goes there by pickle.
        count: how many workers.
        address: a Ray cluster's ("auto" for one on this machine); None starts one here, for this process alone.
        cpus: cores of a worker, to which torch's threads are set; by default this machine's, shared evenly, or
            one each on a cluster.
        gpus: accelerators for each worker.

    Raises:
        InputError: Ray is not installed, or fewer than one worker is asked for.
    """

    def __init__(
        self,
        build: Callable[[], Method],
        count: int,
        *,
        address: str | None = None,
        cpus: int | None = None,
        gpus: float = 0,
    ) -> None:
        if count < 1:
            raise InputError(f"workers: got {count}, wanted at least 1")
        self.build, self.count, self.address, self.gpus = build, count, address, gpus
        self.cpus = cpus or (1 if address else max(1, (os.cpu_count() or 1) // count))
        self.pids: list[int] = []
        """Process ids of the workers that have measured something, in that order."""
        _import_ray()

    def rows(self, candidates: Sequence[Candidate]) -> Generator[SensitivityRow, None, None]:
        """The row of each candidate, as soon as it is measured.

        Raises:
            BitsFusionError: what a measurement itself raised, no such cluster, or one candidate lost `LOST_LIMIT`
                workers.
        """
        ray = _import_ray()
        started = not ray.is_initialized()
        if started:
            self._connect(ray)
        actor_class = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)(_Measurer)
        waiting, lost = deque(candidates), Counter[Candidate]()
        busy: dict[Any, tuple[Any, Candidate]] = {}

        def give(worker: Any) -> None:
            if waiting:
                candidate = waiting.popleft()
                busy[worker.measure.remote(candidate)] = (worker, candidate)

        try:
            for _ in range(min(self.count, len(waiting))):
                give(actor_class.remote(self.build))
            while busy:
                (ready,), _ = ray.wait(list(busy), num_returns=1)
                worker, candidate = busy.pop(ready)
                try:
                    pid, row = ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error, candidate) from None
                except ray.exceptions.RayError as error:
                    lost[candidate] += 1
                    if lost[candidate] == LOST_LIMIT:
                        raise BitsFusionError(
                            f"{candidate.layer}: {LOST_LIMIT} workers were lost while measuring it at "
                            f"{candidate.bits} bits, the last one with {reason(error)}"
                        ) from None
                    waiting.appendleft(candidate)
                    give(actor_class.remote(self.build))
                    continue
                if pid not in self.pids:
                    self.pids.append(pid)
                give(worker)
                yield row
        finally:
            for worker, _ in busy.values():
                ray.kill(worker)
            if started:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster reports nothing to anybody
            cores = max(os.cpu_count() or 1, self.cpus * self.count)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=100 << 20, **quiet)
            return
        try:
            _check_listening(self.address)
            ray.init(address=self.address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"ray: found no cluster at {self.address!r}: {reason(error)}") from None


class _Measurer:
    """A worker; it builds the method when it is first asked for something, so that a failure has a cause."""

    def __init__(self, build: Callable[[], Method]) -> None:
        self._build = build
        self._method: Method | None = None

    def measure(self, candidate: Candidate) -> tuple[int, SensitivityRow]:
        if self._method is None:
            self._method = self._build()
        return os.getpid(), measured_row(self._method, candidate)


def _check_listening(address: str) -> None:
    """Raises at once where nobody listens at HOST:PORT; Ray itself would try for minutes and then end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("workers: Ray is not installed, wanted `pip install 'bitsfusion[ray]'`") from None
    return ray


def _cause(error: Any, candidate: Candidate) -> BitsFusionError:
    """The worker's own error, or what says where another one came from."""
    cause = error.cause
    if isinstance(cause, BitsFusionError):
        return cause
    return BitsFusionError(f"{candidate.layer}: at {candidate.bits} bits a worker failed with {cause!r}")
