"""The presets of diffusion transformers: each resolves, plans by its config alone, and trains on a tiny pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bitsfusion.nn.replace import fake_quantized_layers
from bitsfusion.runs.stage import StageConfig, plan_training, read_training_config, train_stage
from bitsfusion.training.checkpoint import load_student

from ..tiny.pictures import captioned
from ..tiny.transformers import build_transformer_pipeline

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = {
    "flux2_klein_stage1": "Flux2Transformer2DModel",
    "z_image_stage1": "ZImageTransformer2DModel",
    "sd35_medium_stage1": "SD3Transformer2DModel",
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_plans_and_trains(preset, tmp_path):
    model = tmp_path / "model"
    build_transformer_pipeline(PRESETS[preset]).save_pretrained(model)
    path = CONFIGS / f"{preset}.yaml"
    original = yaml.safe_load(path.read_text())
    smaller = {
        "model": model,
        "data.train_data_dir": captioned(tmp_path / "images"),
        "data.latents_cache_dir": tmp_path / "cache",
        "data.resolution": 16,
        "recipe": 7.2,  # the ends are most of a tiny model
        "training.total_batch_size": 8,
        "training.max_train_steps": 2,
        "training.learning_rate": 1e-3,
    }
    config = read_training_config(path, [f"{key}={value}" for key, value in smaller.items()], "cpu")
    assert isinstance(config, StageConfig) and original["recipe"] == 1.99
    plan = plan_training(config)["stage 1"]
    assert plan.sharded and plan.samples_per_step == 8 and plan.fits
    alone = config.model_copy(update={"training": config.training.model_copy(update={"shard": False})})
    result = train_stage(alone, tmp_path / "out")
    assert result.steps == 2 and result.loss > 0
    student = load_student(tmp_path / "out")
    assert type(student).__name__ == PRESETS[preset]
    assert len({layer.bits for layer in fake_quantized_layers(student).values()}) > 1, "mixed"
