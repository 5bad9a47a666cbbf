"""The command line before any command runs: what its help says and what it leaves unimported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bitsfusion import __version__
from bitsfusion.artifact import writer
from bitsfusion.cli.commands import load_command, places, summary
from bitsfusion.runs import folder as run_folder
from bitsfusion.runs.packing import init_pipeline

from ..command import run

HEAVY = {"torch", "numpy", "diffusers", "transformers", "pydantic", "scipy", "matplotlib", "bitsfusion_lab.bench.run"}
MAIN = "import sys; from bitsfusion.cli.main import main; main(sys.argv[1:])"
NAMES = list(places())


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "300", **environment},
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded pipeline: a packed UNet, a dense VAE and a dense text encoder."""
    folder = tmp_path_factory.mktemp("folder") / "packed"
    init_pipeline("embedded", folder, recipe="uniform:2")
    return folder


def test_help_imports_nothing_heavy():
    code = f"import atexit, sys; atexit.register(lambda: print(sorted(set(sys.modules) & {HEAVY!r}))); {MAIN}"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("asked", [["verify"], ["verify", "--json"], ["inspect"], ["inspect", "--json"]], ids=" ".join)
def test_looking_at_a_packed_folder_imports_no_torch(asked: list[str], packed: Path):
    heavy = HEAVY - {"numpy", "pydantic"}
    code = f"import atexit, sys; atexit.register(lambda: print(sorted(set(sys.modules) & {heavy!r}))); {MAIN}"
    done = subprocess.run(
        [sys.executable, "-c", code, *asked, str(packed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command_under_its_heading():
    shown = command("--help").stdout
    for heading in {place.panel for place in places().values()}:
        assert f" {heading} " in shown
    lines = shown.splitlines()
    for name, place in places().items():
        listed = [line for line in lines if line.startswith(f"│ {name} ")]
        assert len(listed) == 1
        assert " ".join(summary(name, place.module).split()) in listed[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_listed_command_is_the_one_that_runs(name):
    loaded = load_command(name)
    assert loaded.name == name
    listed = summary(name, places()[name].module)
    assert listed and loaded.help is not None
    assert loaded.help.startswith(listed)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_help_that_is_shown_whole(name):
    """Rich takes words in brackets for its markup, and drops them."""
    for option in load_command(name).params:
        assert option.help and "[" not in option.help


READ_AND_COUNT = {"plan", "assign", "pack", "inspect", "verify", "vote", "export"}
"""Commands whose work is on files."""


@pytest.mark.parametrize("name", sorted({*NAMES} - READ_AND_COUNT - {"bench"}))  # which compares methods on the CPU
def test_what_computes_takes_a_device(name):
    (option,) = [parameter for parameter in load_command(name).params if parameter.name == "device"]
    assert option.opts == ["--device"] and option.default in (None, "auto")


def test_version():
    assert command("--version").stdout == f"bitsfusion {__version__}\n"


def test_a_misspelt_command_is_a_mistake():
    done = command("verfy")
    assert done.returncode == 2
    assert "Did you mean 'verify'" in done.stderr


def test_the_shell_completes_commands():
    done = command(_BITSFUSION_COMPLETE="complete_bash", COMP_WORDS="bitsfusion ve", COMP_CWORD="1")
    assert done.stdout.split() == ["verify"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("init", "embedded", "--recipe", "uniform:2"), "bitsfusion: interrupted"),
        (("demo", "--quiet"), "bitsfusion: interrupted; the same command continues from here"),
    ],
    ids=["cannot be resumed", "resumes"],
)
def test_ctrl_c_says_whether_the_same_command_goes_on(arguments, line, tmp_path, monkeypatch, capsys):
    """The interruption comes when the first file of the command's work is written."""

    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(writer, "atomic_folder", stop)
    monkeypatch.setattr(run_folder, "write_json", stop)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert run(*arguments, "--out", tmp_path / "out") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.strip().splitlines()[-1] == line
