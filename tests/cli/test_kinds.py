"""`init`, `verify`, `inspect` and `generate` on every kind of pipeline: each works, or ends in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..command import run
from ..tiny.kinds import KINDS, TEXT_TO_IMAGE


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KINDS[kind]().save_pretrained(tmp_path / "source")
    packed = tmp_path / "packed"
    assert run("init", tmp_path / "source", "--recipe", "uniform:4", "--whole", "--out", packed, "--quiet") == 0
    capsys.readouterr()
    assert run("verify", packed, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    files = [file for file in packed.rglob("*") if file.is_file()]
    assert found["whole"] and found["files"] == len(files) - 1 and "unet" in found["packed"]
    assert run("inspect", packed, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pipeline"]["components"].keys() == {p.name for p in packed.iterdir()}
    if kind == "lcm":
        return  # draws with its own scheduler alone
    code = run("generate", packed, "red circle", "--steps", 4, "--out", tmp_path / "drawn", "--quiet")
    said = capsys.readouterr()
    if kind in TEXT_TO_IMAGE:
        assert code == 0 and (tmp_path / "drawn" / "0000.png").is_file()
    else:
        assert code == 2 and len(said.err.strip().splitlines()) == 1
        assert "draws from a picture" in said.err and not (tmp_path / "drawn").exists()
