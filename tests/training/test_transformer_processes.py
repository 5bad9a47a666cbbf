"""Transformers trained by two processes over gloo: whole in each (DDP), and in shards by their blocks (FSDP2)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitsfusion.training.log import LOG_NAME, read_log

from ..tiny.transformers import CONFIGS

ROOT = Path(__file__).parents[2]


def run(out: Path, kind: str, processes: int) -> dict[str, list[float]]:
    """Each class's losses."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *launcher, "tests.training.transformer_run", str(out), kind, *CONFIGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: [line["loss"] for line in read_log(out / name / LOG_NAME)] for name in CONFIGS}


@pytest.mark.slow
def test_two_processes_and_their_shards_give_the_losses_of_one(tmp_path):
    one = run(tmp_path / "one", "whole", 1)
    for kind in ("whole", "shard"):
        two = run(tmp_path / kind, kind, 2)
        for name, losses in one.items():
            assert len(losses) == 2
            assert two[name] == pytest.approx(losses, rel=1e-3), (name, kind)
