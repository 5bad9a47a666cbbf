"""CONTRIBUTING's list of modules is the list of folders, in the order that the import linter holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from .markdown import ROOT


def listed(package: str) -> list[str]:
    """The rows of the table of a package."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split(f"| `src/{package}/` | |\n", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def present(package: str) -> set[str]:
    """The modules and packages that there are."""
    folder = ROOT / "src" / package
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return packages | {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}


def layers() -> list[str]:
    """The import linter's layers, lowest first, without the brackets that mark one that may be absent."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    return [layer.strip("()") for layer in reversed(contracts[0]["layers"])]


@pytest.mark.parametrize("package", ["bitsfusion", "bitsfusion_lab"])
def test_every_module_has_a_row(package):
    assert present(package) - set(listed(package)) == set()


def test_the_order_is_that_of_the_layers():
    rows = listed("bitsfusion")
    assert [row for row in rows if row in layers()] == [layer for layer in layers() if layer in rows]


def test_paper_map_names_files_that_exist():
    text = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| (?!section|---)(.+) \|$", text, re.MULTILINE):
        cells = row.split(" | ")
        for cell, folders in ((cells[2], ("src/bitsfusion", "src")), (cells[3], ("tests",))):
            for name in re.findall(r"`([\w./-]+[./][\w./-]*)`", cell):
                assert any(Path(ROOT, folder, name).exists() for folder in folders), f"{name}: {row[:60]}"
