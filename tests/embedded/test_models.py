"""Both embedded models as every command knows them: by a name, with their world's data, prompts and checker."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bitsfusion.embedded import MODELS, embedded_model, guidance_of
from bitsfusion.embedded.grid import GRID
from bitsfusion.embedded.quick import QUICK
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.evaluation.rungs import RungScores, geneval, score_images
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.pipelines.resolve import resolve
from bitsfusion.report.card import default_prompts, known_license
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.config import RunConfig, WorldSource, own_data
from bitsfusion.runs.run import Run
from bitsfusion.runs.sources import training_data
from bitsfusion.sensitivity.settings import JacobianSettings
from bitsfusion.training.config import TrainingConfig


@pytest.mark.parametrize("name", MODELS)
def test_a_name_stands_for_a_pipeline_and_its_world(name, tmp_path):
    model = MODELS[name]
    assert resolve(name).path == model.pipeline
    assert model.scorer.is_dir() and embedded_model(None, "elsewhere/model", name) is model
    assert set(default_prompts(name)) == {p.text for p in model.world.prompt_set("test", 1)}
    assert known_license(tmp_path, name) == "apache-2.0"
    few = CalibrationJob().texts(name)[: len(model.world.tasks)]
    assert list(few) == [model.world.prompt_set("validation", 1 + 7)[8 * task].text for task in range(len(few))]


def test_guidance_is_the_models_own():
    assert (guidance_of("embedded"), guidance_of("embedded:grid"), guidance_of("somewhere/else")) == (7.5, 3.0, 7.5)


def test_a_config_takes_from_the_model_what_it_does_not_say():
    config = RunConfig.model_validate({"model": "embedded:grid", "data": {"pool": 8}, "evaluation": {"per_task": 2}})
    assert config.data == WorldSource(world="grid", pool=8)
    assert (config.evaluation.guidance, config.calibration.guidance) == (3.0, 3.0)
    assert config.scorer == str(MODELS["embedded:grid"].scorer)
    said = {"model": "embedded:grid", "data": {"kind": "world", "world": "quick"}, "evaluation": {"guidance": 5.0}}
    told = RunConfig.model_validate(said)
    assert (told.data.world, told.evaluation.guidance) == ("quick", 5.0)
    assert RunConfig.model_validate(config.model_dump()) == config
    assert RunConfig().evaluation.guidance == 7.5


def test_task_weights_are_one_for_each_task_of_the_world():
    assert len(WorldSource(world="grid", task_weights=(1,) * 8).task_weights) == 8
    with pytest.raises(ValueError, match=r"task_weights: got 6, wanted one for each of .*three_object, size"):
        WorldSource(world="grid", task_weights=(1,) * 6)


def test_the_grid_worlds_data_are_its_own():
    pipeline = load_pipeline("embedded:grid")
    batch = training_data(own_data("embedded:grid", pool=16), pipeline, "train").batch(0, 0, 1, 8)
    known = {prompt.text for tag in GRID.tasks for prompt in GRID.all_prompts(tag, "train")}
    assert set(batch.names) <= known
    assert batch.latents.shape == (8, 8, 4, 4)


@pytest.mark.parametrize("world", [QUICK, GRID], ids=["quick", "grid"])
def test_each_world_is_scored_by_its_own_checker_in_all_its_tasks(world):
    prompts, rng = world_prompts(world, "test", 3, 0), random.Random(1)
    images = np.stack([world.draw(world.sample_scene(prompt, rng)) for prompt in prompts.asked])
    images[0] = 0
    measured = score_images(images, prompts, None, None)
    scores = RungScores("init", None, **measured, noise_error=0, noise_loss=0, seconds=0)
    found = geneval([scores], prompts)
    assert found.overall == pytest.approx(1 - 1 / 3 / len(world.tasks))
    assert list(found.tasks) == list(world.tasks)


@pytest.mark.slow
def test_a_run_on_the_grid_world_ends_with_its_scores(tmp_path):
    stage = {"train_batch_size": 2, "max_train_steps": 1, "checkpointing_steps": None}
    config = RunConfig.model_validate(
        {
            "model": "embedded:grid",
            "data": {"pool": 8},
            "analysis": JacobianSettings(samples=2).model_dump(),
            "recipe": {"target_bits": 3},
            "stage1": TrainingConfig(stage=1, **stage).model_dump(),
            "stage2": TrainingConfig(stage=2, **stage).model_dump(),
            "serve": {"samplers": {"ddim": 2}},
            "evaluation": {"per_task": 1, "sampler": "ddim", "steps": 2, "probe_samples": 4},
        }
    )
    run = Run(config, tmp_path / "run")
    run.execute()
    from bitsfusion.io.texts import read_json

    summary = read_json(tmp_path / "run" / "summary.json")
    assert [rung["name"] for rung in summary["rungs"]] == ["full_precision", "init", "stage1", "stage2"]
    assert all(set(rung["geneval"]["tasks"]) == set(GRID.tasks) for rung in summary["rungs"])
    assert "Three objects" in (tmp_path / "run" / "report" / "index.html").read_text()
