"""configs/*_stage1.yaml of diffusion transformers: each trains two steps on its model cut short in depth and width."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bitsfusion.training.checkpoint import load_student

from ..command import run
from ..tiny.pictures import captioned
from ..tiny.transformers import build_transformer_pipeline

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "flux2_klein_stage1.yaml": ("flux2-klein", {}),
    "z_image_stage1.yaml": ("z-image", {}),
    "sd35_medium_stage1.yaml": ("sd35-medium", {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}),
}
"""Preset -> the shape of its model, and what of its config is neither depth nor width."""

MACHINES = {
    "8 A100": [],
    "one A100": ["--gpu", "a100", "--gpus", 1],
    "one RTX 4090": ["--gpu", "rtx4090", "--gpus", 1],
}


@pytest.fixture
def shaped(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`tools/shaped_transformer.py`."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("shaped_transformer")


@pytest.mark.parametrize("preset", PRESETS)
def test_trains_two_steps(preset: str, shaped: Any, tmp_path: Path) -> None:
    shape, changes = PRESETS[preset]
    assert changes.keys() <= shaped.SHAPES[shape].config.keys()
    pipeline = build_transformer_pipeline(shaped.SHAPES[shape].name, **changes)
    pipeline.save_pretrained(tmp_path / "model")
    changed = {
        "model": tmp_path / "model",
        "data.train_data_dir": captioned(tmp_path / "pictures"),
        "data.resolution": 16,
        "recipe": "uniform:2",
        "training.shard": "false",
        "training.total_batch_size": 2,
        "training.max_train_steps": 2,
    }
    words = [word for key, value in changed.items() for word in ("--set", f"{key}={value}")]
    assert run("train", CONFIGS / preset, *words, "--out", tmp_path / "stage1", "--quiet") == 0
    student = load_student(tmp_path / "stage1")
    assert type(student) is type(pipeline.transformer)
    weights = dict(pipeline.transformer.named_parameters())
    trained = [
        name for name, value in student.named_parameters() if name in weights and not torch.equal(value, weights[name])
    ]
    assert len(trained) > len(weights) / 2


@pytest.mark.parametrize("preset", PRESETS)
def test_says_what_it_costs(preset: str, shaped: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the configs of the real model, on eight GPUs in shards and on one, where scales, biases and norms train."""
    shaped.write_pipeline_configs(PRESETS[preset][0], tmp_path / "model")
    plans = {}
    for name, machine in MACHINES.items():
        alone = [] if name == "8 A100" else ["--set", "training.shard=false", "--set", "training.trained=light"]
        words = ["--set", f"model={tmp_path / 'model'}", *alone, *machine]
        assert run("train", CONFIGS / preset, "--dry-run", "--json", *words) == 0
        plans[name] = json.loads(capsys.readouterr().out)["plan"]["stage 1"]
    eight, one, small = (plans[name] for name in MACHINES)
    assert eight["machine"]["gpus"] == 8 and one["machine"]["gpus"] == small["machine"]["gpus"] == 1
    assert eight["fits"] and one["fits"] and 0 < eight["days"] < one["days"]
    assert eight["bytes_per_gpu"] < one["bytes_per_gpu"] == small["bytes_per_gpu"]
    assert small["fits"] == (small["bytes_per_gpu"] <= 24e9)
