"""The page's scripts under node, with the third-party scripts beside them where their archives are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitsfusion.exporting.web.vendor import PACKAGES, write_vendor
from bitsfusion.exporting.web.web import PAGE

NODE = shutil.which("node")
ARCHIVES = Path(os.environ.get("BITSFUSION_VENDOR", Path(__file__).parents[3] / ".vendor"))
"""What `make vendor` fetches from npm."""

Node = Callable[..., Any]


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the page's scripts, as modules of node."""
    path = tmp_path_factory.mktemp("page") / "page"
    shutil.copytree(PAGE, path)
    (path / "package.json").write_text('{"type": "module"}')
    (path / "vendor").mkdir()
    return path


@pytest.fixture(scope="session")
def archives() -> Path:
    """The npm archives; skips where they are not."""
    missing = [package.archive for package in PACKAGES if not (ARCHIVES / package.archive).is_file()]
    if missing:
        pytest.skip(f"no {missing[0]} in {ARCHIVES.name}: make vendor fetches it from npm")
    return ARCHIVES


@pytest.fixture(scope="session")
def whole_page(page: Path, archives: Path) -> Path:
    """The same with the third-party scripts."""
    write_vendor(page / "vendor", archives)
    return page


@pytest.fixture(scope="session")
def node(page: Path) -> Node:
    """Runs a script in the page's folder with JSON on its standard input; returns the JSON that it prints."""
    if NODE is None:
        pytest.skip("no node")
    program = NODE

    def run(script: str, given: Any = None) -> Any:
        start = (
            'import { readFileSync } from "node:fs"; const given = JSON.parse(readFileSync(0, "utf8")); '
            "const print = (value) => process.stdout.write(JSON.stringify(value));\n"
        )
        command = [program, "--input-type=module", "--eval", start + script]
        done = subprocess.run(command, cwd=page, input=json.dumps(given), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
