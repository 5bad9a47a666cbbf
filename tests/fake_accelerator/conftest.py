"""The fake accelerator's process, started once a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .device import build, compiler

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen]:
    if compiler() is None:
        pytest.skip("the fake accelerator: no C++ compiler is here")
    if not hasattr(os, "fork") or sys.platform == "darwin":
        pytest.skip("the fake accelerator: its programs are forks of one process, which this system does not do well")
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("fake_accelerator") if cache else tmp_path_factory.mktemp("fake_accelerator")
    try:
        library = build(folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the fake accelerator: the compiler refuses it: {error.stderr.strip().splitlines()[0]}")
    command = [sys.executable, "-m", "tests.fake_accelerator.process", str(library)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None and started.stdin is not None
        assert json.loads(started.stdout.readline()) == {"ready": "fakegpu:0"}
        yield started
        started.stdin.close()
        started.wait(20)


@pytest.fixture
def on_accelerator(process: subprocess.Popen, tmp_path: Path) -> Callable[[str], Any]:
    """Runs a program of `programs.py` in a process of its own: its result; fails with its traceback."""

    def run(program: str) -> Any:
        assert process.stdin is not None and process.stdout is not None
        print(json.dumps({"program": program, "folder": str(tmp_path)}), file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline())
        if "error" in answer:
            pytest.fail(answer["error"], pytrace=False)
        return answer["result"]

    return run
