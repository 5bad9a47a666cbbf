"""Several processes in one run folder: one does the steps, all train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from bitsfusion.runs.config import read_config
from bitsfusion.runs.run import Run
from bitsfusion.training.log import read_log

SCRIPT = """
import sys, time
from pathlib import Path
from bitsfusion.runs.folder import RunFolder

path = Path(sys.argv[1])
folder = RunFolder(path)
rank = folder.ranks._state.process_index
mine = folder.path / f"rank-{rank}.txt"

def note(text):
    with open(mine, "a") as file:
        file.write(text + "\\n")

def alone():
    time.sleep(1)
    note("alone")
    (folder.path / "a").write_text("a")

def together():
    note("together, after " + (folder.path / "a").read_text())
    folder.ranks.wait()
    if folder.ranks.main:
        (folder.path / "b").write_text("b")

for version in (1, 1, 2):
    folder.step("a", {"version": version}, ["a"], alone)
    note(folder.made("a")["a"][:4])
    ran = folder.step("b", {"version": version}, ["b"], together, joint=True)
    note(f"{ran} {sorted(folder.made('b'))}")
folder.close()
again = RunFolder(path)
again.step("a", {"version": 2}, ["a"], alone)
again.close()
"""


def launch(arguments: list[str], processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, timeout=400, check=False, capture_output=True, text=True)


def test_one_process_does_a_step_and_all_do_a_joint_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = launch([str(script), str(tmp_path / "run")])
    assert done.returncode == 0, done.stderr
    main, other = ((tmp_path / "run" / f"rank-{rank}.txt").read_text().splitlines() for rank in range(2))
    done_once = ["together, after a", "True ['b']"]
    assert [line for line in main if line != main[1]] == ["alone", *done_once, "False ['b']", "alone", *done_once]
    assert [line for line in other if line != main[1]] == [*done_once, "False ['b']", *done_once]


@pytest.mark.slow
def test_a_run_trains_over_two_processes_as_over_one(tmp_path):
    training = {"train_batch_size": 2, "total_batch_size": 4, "max_train_steps": 2, "learning_rate": 1e-5}
    values = {
        "model": "embedded",
        "data": {"kind": "world", "pool": 24},
        "analysis": {"method": "noise_error", "samples": 2},
        "scale_init": "minmax",
        "stage1": {"stage": 1, "logging_steps": 1, **training},
        "stage2": {"stage": 2, "logging_steps": 1, **training},
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    Run(read_config(config), tmp_path / "one").execute("stage2")
    arguments = ["-m", "bitsfusion.cli.main", "train", str(config), "--out", str(tmp_path / "two"), "-q"]
    done = launch(arguments)
    assert done.returncode == 0, done.stderr
    for stage in ("stage1", "stage2"):
        folders = [tmp_path / name / stage / "seed-0" for name in ("one", "two")]
        one, two = ([line["loss"] for line in read_log(Path(folder) / "log.jsonl")] for folder in folders)
        assert two == pytest.approx(one, rel=1e-4) and len(two) == 2
        assert load_file(folders[1] / "student.safetensors")
    recipes = [json.loads((tmp_path / name / "recipe.json").read_text())["bits"] for name in ("one", "two")]
    assert recipes[0] == recipes[1]
    before = (tmp_path / "two" / "steps" / "stage2-0.json").stat().st_mtime_ns
    assert launch(arguments).returncode == 0
    assert (tmp_path / "two" / "steps" / "stage2-0.json").stat().st_mtime_ns == before
