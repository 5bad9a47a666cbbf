"""Real Ray processes: the same rows as alone, and nothing lost or done twice when one of them is killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter

import pytest

pytest.importorskip("ray", reason="pip install 'bitsfusion[ray]'")

import ray

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.sensitivity.measure import analyze
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.ray_workers import LOST_LIMIT, RayWorkers
from bitsfusion.sensitivity.settings import NoiseErrorSettings
from bitsfusion.sensitivity.table import Candidate, read_table

from ..tiny.pipeline import build_one_block_pipeline
from .random_data import RandomData

SETTINGS = NoiseErrorSettings(samples=4, batch_size=4)
NAMES = {"model": "tiny", "source_sha256": "f" * 64}


@pytest.fixture(autouse=True, scope="module")
def by_value():
    """Workers cannot import the tests: what they need of them travels with them."""
    tests = sys.modules["tests"]
    ray.cloudpickle.register_pickle_by_value(tests)
    yield
    ray.cloudpickle.unregister_pickle_by_value(tests)


class Noted:
    """The noise error of a tiny pipeline; notes each model loaded and each measurement begun and finished."""

    def __init__(self, log, seconds=0.0):
        self.log, self.seconds = log, seconds
        self.note("loaded")
        self.method = NoiseError(build_one_block_pipeline(), SETTINGS, RandomData())

    def note(self, *words):
        with open(self.log, "a") as file:
            file.write(" ".join((*map(str, words), str(os.getpid()))) + "\n")

    def measure(self, name, bits):
        self.note("began", name, bits)
        values = self.method.measure(name, bits)
        time.sleep(self.seconds)
        self.note("finished", name, bits)
        return values


class Broken:
    def measure(self, name, bits):
        if bits == 2:
            raise InputError(f"{name}: got something odd")
        if bits == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"mse": float("nan")}


def values(table):
    return [row.model_dump(exclude={"seconds"}) for row in table.rows]


@pytest.mark.slow
def test_one_of_two_workers_is_killed(tmp_path):
    alone = analyze(build_one_block_pipeline(), SETTINGS, tmp_path / "alone.json", RandomData(), **NAMES)
    log, out = tmp_path / "log", tmp_path / "s.json"
    workers = RayWorkers(lambda: Noted(log, 0.02), 2, cpus=1)
    killed, seen = [], []

    def kill_one(done, total):
        seen.append((done, total))
        if len(workers.pids) == 2 and not killed:
            killed.append(workers.pids[0])
            os.kill(killed[0], signal.SIGKILL)

    table = analyze(
        build_one_block_pipeline(), SETTINGS, out, RandomData(), **NAMES, workers=workers, progress=kill_one
    )
    assert len(killed) == 1
    assert values(table) == values(alone)
    assert read_table(out) == table
    total = len(table.rows)
    assert seen == [(done, total) for done in range(total + 1)]  # a row at a time, each counted once
    assert not list(tmp_path.glob("*.journal*")) and not ray.is_initialized()

    lines = [line.split() for line in log.read_text().splitlines()]
    loaded = [line[-1] for line in lines if line[0] == "loaded"]
    assert len(loaded) == len(set(loaded)) == 3  # two workers and the one in the killed one's place, once each
    finished = Counter(tuple(line[1:3]) for line in lines if line[0] == "finished")
    began = Counter(tuple(line[1:3]) for line in lines if line[0] == "began")
    assert set(finished) == {(row.layer, str(row.bits)) for row in table.rows}
    again = [candidate for candidate, times in began.items() if times > 1]
    assert len(again) <= 1  # what the killed worker was at
    assert {candidate: times for candidate, times in finished.items() if times > 1}.keys() <= set(again)


@pytest.mark.slow
def test_failures_in_workers():
    """In one cluster: starting one takes seconds."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        workers = RayWorkers(Broken, 1, cpus=1)
        with pytest.raises(InputError, match=r"^a: got something odd$"):
            list(workers.rows([Candidate("a", 2)]))
        with pytest.raises(BitsFusionError, match="b: got mse nan at 1 bits"):
            list(workers.rows([Candidate("b", 1)]))
        with pytest.raises(BitsFusionError, match=f"^c: {LOST_LIMIT} workers were lost while measuring it at 3 bits"):
            list(workers.rows([Candidate("c", 3)]))
        assert ray.is_initialized()  # a cluster of the caller's stays
    finally:
        ray.shutdown()


def test_refuses():
    with pytest.raises(InputError, match="workers: got 0"):
        RayWorkers(Broken, 0)
    with pytest.raises(InputError, match=r"no cluster at .127.0.0.1:9."):
        list(RayWorkers(Broken, 1, address="127.0.0.1:9").rows([Candidate("a", 1)]))
