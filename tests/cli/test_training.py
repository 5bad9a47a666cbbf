"""`train`, `pack`, `timesteps`, `plan` and `export` on the embedded model: one step, few samples."""

from __future__ import annotations

import json

import pytest
import yaml

from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.diffusion.time_features import BASIS

from ..command import refusal, run

STAGE = {
    "model": "embedded",
    "data": {"kind": "world", "pool": 8},
    "recipe": "uniform:2",
    "training": {"train_batch_size": 2, "max_train_steps": 1, "checkpointing_steps": None},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "stage.yaml"
    path.write_text(yaml.safe_dump(STAGE))
    return path


@pytest.fixture(scope="module")
def student(config):
    out = config.parent / "student"
    assert run("train", config, "--out", out, "--quiet") == 0
    return out


@pytest.fixture(scope="module")
def packed(student):
    out = student.parent / "packed"
    assert run("pack", student, "--out", out, "--quiet") == 0
    return out


def test_the_plan_of_a_stage(config, capsys):
    assert run("train", config, "--dry-run", "--set", "training.max_train_steps=7") == 0
    printed = capsys.readouterr().out
    resolved, end = json.JSONDecoder().raw_decode(printed)
    assert resolved["training"]["max_train_steps"] == 7
    row = next(line for line in printed[end:].splitlines() if " steps " in line)
    assert row.split()[-2] == "7" and "samples a step" in printed


def test_a_finished_stage_is_not_trained_again(config, student, capsys):
    before = {path: path.stat().st_mtime_ns for path in student.rglob("*.safetensors")}
    assert before and run("train", config, "--out", student, "--quiet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    assert {path: path.stat().st_mtime_ns for path in student.rglob("*.safetensors")} == before


def test_pack(packed):
    verify_folder(packed)
    inspection = inspect_folder(packed)
    assert {layer.bits for layer in inspection.layers} == {2, 8} and inspection.time_features["kind"] == BASIS


def test_time_steps(student, tmp_path, capsys):
    out = tmp_path / "curve.json"
    assert run("timesteps", "embedded", student, "--out", out, "--points", 2, "--samples", 2, "--json") == 0
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert len(curve) == 2 and min(error for _, error in curve) > 0
    assert out.is_file() and out.with_suffix(".png").stat().st_size > 1000


def test_plan_is_near_what_is_packed(packed, capsys):
    assert run("plan", "embedded", "--recipe", "uniform:2", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["bytes_packed"] > inspect_folder(packed).bytes_on_disk.total  # of the whole pipeline
    assert run("plan", "embedded", "--recipe", "uniform:2") == 0
    assert "unet" in capsys.readouterr().out


def test_export(packed, tmp_path, capsys):
    assert run("export", packed, "--to", "dense", "--out", tmp_path / "dense", "--quiet") == 0
    assert "MB" in capsys.readouterr().out and (tmp_path / "dense" / "model_index.json").is_file()
    assert "wanted" in refusal(capsys, "export", packed, "--to", "nothing", "--out", tmp_path / "no")
