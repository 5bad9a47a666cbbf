"""`init --calibrate` and the calibrated start of a run, on the embedded model with very few pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bitsfusion  # noqa: F401  registers with diffusers
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.cli.steps import _calibration, _others
from bitsfusion.errors import InputError
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.calibration import CALIBRATED, CalibrationJob
from bitsfusion.runs.components import UNET_ALONE, WHOLE, WHOLE_CALIBRATED
from bitsfusion.runs.config import RunConfig, WorldSource
from bitsfusion.runs.packing import init_pipeline
from bitsfusion.runs.run import Run
from bitsfusion.sensitivity.settings import JacobianSettings
from bitsfusion.training.checkpoint import load_student

from ..tiny.pipeline import build_pipeline
from ..tiny.unet import build_unet
from ..tiny.vae import build_vae
from .killed_init import calibrated

FEW = CalibrationSettings(samples=2, steps=2)


def test_init_writes_a_packed_folder_that_says_how_it_was_made(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    job = CalibrationJob(prompts, FEW)
    out = tmp_path / "packed"
    model = str(tmp_path / "model")
    build_pipeline(build_unet(), build_vae((8, 8, 8), scaling_factor=1.0)).save_pretrained(model)
    config = init_pipeline(model, out, recipe="uniform:3", calibration=job)["unet"]
    verify_folder(out)
    assert config.provenance["scale_init"] == "calibrated"
    assert config.provenance["calibration"]["samples"] == 2
    assert not list(tmp_path.glob(".packed.calibration*"))
    pipeline, original = load_pipeline(str(out)), load_pipeline(model)
    plain = init_pipeline(model, tmp_path / "plain", recipe="uniform:3")["unet"]
    assert plain.layers.keys() == config.layers.keys()
    name = "mid_block.resnets.0.conv2"
    bias, before = (model.unet.get_submodule(name).bias for model in (pipeline, original))
    assert not torch.equal(bias, before)


@pytest.mark.slow
def test_a_killed_init_continues_and_writes_the_same_bytes(tmp_path):
    model, out = tmp_path / "model", tmp_path / "packed"
    torch.manual_seed(0)
    build_pipeline(build_unet(), build_vae((8, 8, 8), scaling_factor=1.0)).save_pretrained(model)

    def killed(step: str, done: int) -> list[str]:
        """The journal that a process killed there leaves, and nothing else."""
        command = [sys.executable, "-m", "tests.runs.killed_init", str(model), str(out), step, str(done)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        ended = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=False)
        assert ended.returncode == -signal.SIGKILL
        assert not (out / "model_index.json").exists()
        (journal,) = tmp_path.glob(".packed.calibration-*")
        return sorted(path.name for path in journal.glob("block-*"))

    first = killed("calibrate", 20)
    assert first
    assert len(killed("calibrate", 40)) > len(first)
    assert len(killed("pack", 5)) > len(first)
    calibrated(str(model), out)
    calibrated(str(model), tmp_path / "whole")
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    assert any("unet" in path.parts for path in files)
    assert all((out / path).read_bytes() == (tmp_path / "whole" / path).read_bytes() for path in files)
    assert not list(tmp_path.glob(".packed.calibration-*"))


def test_prompts_are_of_every_task_and_of_the_package():
    few = CalibrationJob().texts("embedded")[:6]
    assert len(set(few)) == 6
    assert len(set(CalibrationJob().texts("somewhere/else"))) == 48


@pytest.mark.slow
def test_a_run_starts_calibrated(tmp_path):
    config = RunConfig(
        scale_init="calibrated",
        calibration=FEW,
        analysis=JacobianSettings(samples=2),
        data=WorldSource(pool=8),
    )
    Run(config, tmp_path / "run").execute("init")
    student, original = load_student(tmp_path / "run" / "init"), load_pipeline("embedded").unet
    name = "mid_block.resnets.0.conv2"
    assert not torch.equal(student.get_submodule(name).bias, original.get_submodule(name).bias)
    layer = student.get_submodule(name)
    assert torch.equal(layer.quantized_weight(), layer.weight)  # training starts on the levels themselves
    assert not list((tmp_path / "run").glob(".init.calibration*"))


def test_a_run_is_exact_unless_asked_otherwise():
    assert RunConfig().scale_init == ScaleInit.EXACT
    assert RunConfig(scale_init="calibrated").scale_init == CALIBRATED


def test_options_without_calibrate_are_refused():
    with pytest.raises(InputError, match="calibration-samples: got a value without --calibrate"):
        _calibration("embedded", False, None, 3, None, "cpu")
    assert _calibration("embedded", False, None, None, None, "cpu") is None
    made = _calibration("embedded:grid", True, None, 3, 4, "cpu")
    assert (made.settings.samples, made.settings.steps, made.settings.guidance) == (3, 4, 3.0)


def test_a_calibrated_whole_takes_fewer_bits_unless_told():
    assert _others(True, None, None, None, calibrate=True) == WHOLE_CALIBRATED
    assert _others(True, None, None, None) == WHOLE and _others(False, None, None, None, True) == UNET_ALONE
    given = _others(True, "4", None, 6, calibrate=True)
    assert (given.text_encoder, given.vae, given.token_embedding) == ("4", WHOLE_CALIBRATED.vae, 6)
