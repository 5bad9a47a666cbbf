"""One stage by itself, through the command line: in one process, in two over gloo, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bitsfusion.architectures.registry import model_layers
from bitsfusion.errors import InputError
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.stage import StageConfig, plan_training, read_training_config, train_stage
from bitsfusion.training.log import read_log

STAGE = {
    "model": "embedded",
    "data": {"kind": "world", "pool": 24},
    "recipe": "uniform:2",
    "scale_init": "minmax",
    "training": {
        "train_batch_size": 2,
        "total_batch_size": 4,
        "max_train_steps": 3,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "checkpointing_steps": 1,
        "teacher_dtype": "bfloat16",
    },
}
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "stage.yaml"
    path.write_text(yaml.safe_dump(STAGE))
    return path


@pytest.fixture(scope="module")
def alone(config_file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "stage"
    train_stage(read_training_config(config_file), out)
    return out


def command(config_file: Path, out: Path, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, "-m", "bitsfusion.cli.main", "train", str(config_file), "--out", str(out), "-q"]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_log(out / "log.jsonl")]


@pytest.mark.slow
def test_two_processes_through_the_command_line_give_the_losses_of_one(config_file, alone, tmp_path):
    subprocess.run(command(config_file, tmp_path, processes=2), env=ENVIRONMENT, timeout=300, check=True)
    assert len(losses(alone)) == 3
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)
    assert json.loads((tmp_path / "student.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bits(config_file, alone, tmp_path):
    process = subprocess.Popen(command(config_file, tmp_path), env=ENVIRONMENT)
    deadline = time.monotonic() + 240
    while not (tmp_path / "checkpoint-1").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "student.json").exists()
    subprocess.run(command(config_file, tmp_path), env=ENVIRONMENT, timeout=300, check=True)
    ours, theirs = load_file(tmp_path / "student.safetensors"), load_file(alone / "student.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_next_stage_starts_from_the_last_ones_student(alone, config_file, tmp_path):
    changes = ["recipe=null", f"student={alone}", "training.stage=2", "training.max_train_steps=1"]
    result = train_stage(read_training_config(config_file, changes), tmp_path)
    start, end = load_file(alone / "student.safetensors"), result.student.state_dict()
    moved = [(end[name] - value).abs().max().item() for name, value in start.items()]
    assert 0 < max(moved) < 2e-4 * 1.01  # one AdamW step of 1e-4, with decay
    again = train_stage(read_training_config(config_file, changes), tmp_path)
    assert again.resumed_from == 1


def test_two_runs_do_not_share_a_folder(config_file, alone):
    from bitsfusion.io.work_folder import folder_lock

    lock = folder_lock(alone, alone / ".lock")
    try:
        with pytest.raises(InputError, match="another process is working"):
            train_stage(read_training_config(config_file), alone)
    finally:
        lock.close()


class TestReading:
    def test_overrides_take_the_place_of_the_files_values(self, config_file):
        read = read_training_config(config_file, ["training.seed=7", "data={kind: world, pool: 3}", "recipe=sd15"])
        assert isinstance(read, StageConfig)
        assert (read.training.seed, read.data.pool, read.recipe) == (7, 3, "sd15")
        assert read.training.train_batch_size == 2

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("training.seed", "wanted KEY=VALUE"),
            ("=1", "wanted KEY=VALUE"),
            ("model.name=1", "model is no section"),
            ("training.sed=1", r"training\.sed: Extra inputs"),
            ("student=x", "wanted one of them to start from"),
            ("recipe=null", "wanted one of them to start from"),
            ("training.seed={", "wanted a value in YAML"),
        ],
    )
    def test_a_wrong_override_is_one_line(self, config_file, change, message):
        with pytest.raises(InputError, match=message) as caught:
            read_training_config(config_file, [change])
        assert "\n" not in str(caught.value)

    def test_a_config_of_a_whole_run_is_told_apart(self):
        assert isinstance(read_training_config(CONFIGS / "sd15.yaml"), RunConfig)

    @pytest.mark.parametrize(
        ("name", "samples", "steps"), [("sd15_stage1", 256, 20_000), ("sd15_stage2", 1024, 50_000)]
    )
    def test_the_papers_presets_resolve(self, name, samples, steps):
        training = read_training_config(CONFIGS / f"{name}.yaml").training
        assert (training.total_batch_size, training.max_train_steps, training.learning_rate) == (samples, steps, 1e-5)
        assert (training.timesteps.kind, training.timesteps.alpha, training.timesteps.beta) == ("beta", 3.0, 1.0)
        assert all(training.accumulation(gpus) * gpus * 32 == samples for gpus in (1, 2, 4, 8))


@pytest.mark.parametrize(
    ("name", "trained", "steps"), [("sd15_calibrated", "all", (4000, 10_000)), ("sd15_one_gpu", "light", (2000, 500))]
)
def test_presets_from_a_calibrated_start_resolve(name, trained, steps):
    config = read_training_config(CONFIGS / f"{name}.yaml")
    assert config.scale_init == "calibrated" and config.stage1.trained == config.stage2.trained == trained
    assert (config.stage1.max_train_steps, config.stage2.max_train_steps) == steps


def test_sdxls_presets_resolve():
    full, one = (read_training_config(CONFIGS / f"{name}.yaml") for name in ("sdxl", "sdxl_one_gpu"))
    assert (full.stage1.total_batch_size, full.stage2.total_batch_size) == (256, 1024)
    assert (full.stage1.trained, one.stage1.trained) == ("all", "light") and one.scale_init == "calibrated"
    assert full.data.resolution == one.data.resolution == 1024


def test_the_plan_reads_the_models_own_shape(config_file):
    plan = plan_training(
        read_training_config(config_file, ["training.train_batch_size=1", "training.total_batch_size=8"])
    )
    stage = plan["stage 1"]
    unet = load_pipeline("embedded").unet
    assert stage.parameters == sum(parameter.numel() for parameter in unet.parameters())
    assert stage.parameters > sum(layer.numel for layer in model_layers(unet).values())
    assert stage.bytes["teacher"] == 2 * stage.parameters and stage.samples_per_step == 8


def test_the_few_step_preset_resolves():
    config = read_training_config(CONFIGS / "lcm_stage1.yaml")
    assert (config.data.kind, config.data.steps, config.training.stage) == ("trajectories", 4, 1)
