"""`bitsfusion analyze` and `assign` as users call them, on the embedded model."""

from __future__ import annotations

import json

import pytest

from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.cli.main import main
from bitsfusion.io.texts import read_json
from bitsfusion.recipe.schema import read_recipe
from bitsfusion.sensitivity.table import read_table

from ..tiny.kinds import build_sd
from ..tiny.pictures import captioned


def call(capsys, *arguments, code=0):
    """What a command prints, or its one line on stderr when it fails."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert ended.value.code == code, printed.err
    if code:
        assert len(printed.err.strip().splitlines()) == 1, printed.err
        return printed.err
    return printed.out


@pytest.fixture(scope="module")
def sensitivity(tmp_path_factory):
    out = tmp_path_factory.mktemp("analysis") / "sensitivity.json"
    arguments = ["analyze", "embedded", "--out", out, "--method", "jacobian", "--samples", "4", "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--report", str(out.parent / "report")])
    assert ended.value.code == 0
    return out


def test_measures_and_reports(sensitivity):
    table = read_table(sensitivity)
    assert table.method == "jacobian" and table.settings["samples"] == 4 and len(table.rows) == 3 * len(table.layers)
    report = {file.name for file in (sensitivity.parent / "report").iterdir()}
    assert report == {"tables.json", "tables.md", "mse.png", "skewness.png"}


def test_dry_run_tells_and_writes_nothing(tmp_path, tmp_path_factory, capsys):
    source, pictures = tmp_path_factory.mktemp("source"), captioned(tmp_path_factory.mktemp("pictures"))
    pipeline = build_sd()
    pipeline.save_pretrained(source)
    candidates = 3 * len(layers_to_assign(pipeline.unet))
    data = ("--data", pictures, "--resolution", "16", "--samples", "2")
    arguments = ("analyze", source, "--out", tmp_path / "s.json", "--method", "noise_error", *data, "--dry-run")
    plan = json.loads(call(capsys, *arguments, "--workers", "4", "--json"))
    assert (plan["candidates"], plan["done"], plan["forwards"], plan["workers"]) == (candidates, 0, 2, 4)
    assert 0 < plan["hours"] < 0.1
    text = call(capsys, *arguments)
    assert f"{candidates}, of which 0" in text and "timed: 2 noisy latents" in text
    assert list(tmp_path.iterdir()) == []


def test_a_budget_of_true_bits(sensitivity, tmp_path, capsys):
    text = call(capsys, "assign", sensitivity, "--out", tmp_path / "r.json", "--true-bits", "1.8", "--quiet")
    recipe = read_recipe(tmp_path / "r.json")
    true = recipe.provenance["true_bits"]
    assert 1.79 < true <= 1.8 < recipe.average_bits and f"{true:.4f} true bits" in text
    assert read_json(tmp_path / "r.json")["target_bits"] == 1.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "jacobian", "--workers", "2"), "which measures all layers at once"),
        (("--method", "paper", "--prompts", "few.txt", "--images", "5"), "prompts: got 2 in few.txt, wanted 5"),
        (("--device", "abacus"), "device: got 'abacus'"),
        (("--workers", "1", "--method", "paper", "--ray-address", "127.0.0.1:9"), "no cluster at '127.0.0.1:9'"),
    ],
    ids=["workers", "prompts", "device", "cluster"],
)
def test_refuses(tmp_path, monkeypatch, capsys, arguments, message):
    if "--workers" in arguments:
        pytest.importorskip("ray", reason="pip install 'bitsfusion[ray]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.txt").write_text("a circle\na square\n")
    assert message in call(capsys, "analyze", "embedded", "--out", "s.json", "--quiet", *arguments, code=2)
    assert not (tmp_path / "s.json").exists()


def test_two_budgets(sensitivity, tmp_path, capsys):
    line = call(
        capsys, "assign", sensitivity, "--out", tmp_path / "r.json", "--bits", "2", "--true-bits", "1.8", code=2
    )
    assert "wanted one of the two" in line
