"""The fake accelerator's process, forked once a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .device import build, compiler
from .zygote import Zygote

FORKS = hasattr(os, "fork") and sys.platform != "darwin"
ZYGOTE = pytest.StashKey[Zygote]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before any test has run, where tests of this folder will."""
    asked = any(item.path.parent == Path(__file__).parent for item in session.items)
    if asked and FORKS and not session.config.option.collectonly:
        session.config.stash[ZYGOTE] = Zygote()


def pytest_unconfigure(config: pytest.Config) -> None:
    if (zygote := config.stash.get(ZYGOTE, None)) is not None:
        zygote.close()


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake accelerator, compiled."""
    if compiler() is None:
        pytest.skip("the fake accelerator: no C++ compiler is here")
    if not FORKS:
        pytest.skip("the fake accelerator: its programs are forks of one process, which this system does not do well")
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("fake_accelerator") if cache else tmp_path_factory.mktemp("fake_accelerator")
    try:
        return build(folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the fake accelerator: the compiler refuses it: {error.stderr.strip().splitlines()[0]}")


@pytest.fixture
def on_accelerator(library: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Any]:
    """Runs a program of `programs.py` in a process of its own: its result; fails with its traceback."""

    def run(program: str) -> Any:
        answer = request.config.stash[ZYGOTE].run(library, program, tmp_path)
        if "error" in answer:
            pytest.fail(answer["error"], pytrace=False)
        return answer["result"]

    return run
