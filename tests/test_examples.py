"""The examples run as they stand; scripts find what they import."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


@pytest.mark.parametrize(
    ("name", "arguments", "printed"),
    [
        ("count_bits.py", [], "1.98847 bits on average"),
        ("compare_scales.py", [], "exact"),
        ("pack_without_training.py", ["OUT"], "bits on average"),
        ("train_adapter.py", ["OUT"], "with it, 223488 trained parameters"),
    ],
)
def test_example(name, arguments, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *(str(tmp_path) for _ in arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert printed in capsys.readouterr().out


def test_no_example_is_left_out():
    assert len(list(EXAMPLES.glob("*.py"))) == 4


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_what_it_imports(script, monkeypatch):
    monkeypatch.syspath_prepend(str(script.parent))  # as where it is called by its path
    runpy.run_path(str(script), run_name="imported")
