"""The workflows call only what there is: targets of the Makefile, and scripts of this repository in its recipes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
OTHER_COMMANDS = {"pipx run build --sdist"}


def jobs(workflow: Path) -> dict[str, Any]:
    found = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert isinstance(found, dict) and found["jobs"]
    return found["jobs"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_command_is_there(workflow):
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for name, job in jobs(workflow).items():
        assert job["timeout-minutes"] <= 60, name
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), f"{name}: {step}"
            command = step.get("run", "make")
            made = re.match(r"make(?: ([a-z-]+))?", command)
            assert command in OTHER_COMMANDS or made, f"{name}: {command}"
            assert not made or made[1] in targets | {None}, f"{name}: make {made[1]} is no target"


def test_what_the_makefile_calls_is_there():
    places = set(re.findall(r"\b(?:tools|benchmarks)/\w+\.(?:py|sh)", MAKEFILE))
    assert len(places) >= 2
    for place in places:
        assert (ROOT / place).is_file(), place


def test_checks_lowest_versions_wheels_and_site_are_all_there():
    called = {
        step.get("run") or step["uses"] for path in WORKFLOWS for job in jobs(path).values() for step in job["steps"]
    }
    assert {"make lint", "make test", "make test-min", "make wheel"} <= called
    assert any(name.startswith("pypa/cibuildwheel@") for name in called)
    assert "$(MAKE) --no-print-directory docs" in MAKEFILE.split("\nlint:")[1].split("\n\n")[0]


def test_every_bound_can_be_installed_as_it_is_written():
    """`make test-min` pins each requirement to its bound, and leaves none out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for requirement in [
        *project["dependencies"],
        *(line for name in ("cli", "train", "eval", "vote", "export") for line in extras[name]),
    ]:
        assert re.fullmatch(r"bitsfusion\[[a-z,]+\]|[\w.-]+>=[\d.]+", requirement), requirement
