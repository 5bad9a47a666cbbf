"""A run on what a user brings: a pipeline folder, an image folder and prompts; no checker, no scorer."""

import json
import random
import shutil

import pytest
from PIL import Image

from bitsfusion.artifact.verify import verify_folder
from bitsfusion.embedded import PIPELINE_FOLDER
from bitsfusion.embedded.quick import QUICK
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.run import Run


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(PIPELINE_FOLDER, folder / "model")
    (folder / "images").mkdir()
    rng, lines = random.Random(0), []
    for index in range(12):
        prompt = QUICK.sample_prompt(rng)
        Image.fromarray(QUICK.draw(QUICK.sample_scene(prompt, rng))).save(folder / "images" / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": prompt.text}))
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "prompts.txt").write_text("a red circle\ntwo squares\n")
    stage = {"train_batch_size": 4, "learning_rate": 1e-4, "max_train_steps": 2}
    return {
        "model": str(folder / "model"),
        "data": {
            "kind": "imagefolder",
            "train_data_dir": str(folder / "images"),
            "resolution": 64,
            "latents_cache_dir": str(folder / "cache"),
        },
        "analysis": {"method": "jacobian", "samples": 2},
        "stage1": {"stage": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": True, **stage},
        "stage2": {"stage": 2, "mixed_precision": "no", **stage},
        "serve": {"samplers": {"pndm": 5, "dpm": 4}},
        "evaluation": {"prompts": str(folder / "prompts.txt"), "steps": 5, "probe_samples": 8},
    }


def test_metrics_it_has_no_model_for_are_null(config, tmp_path):
    Run(RunConfig.model_validate(config), tmp_path / "run").execute()
    verify_folder(tmp_path / "run" / "packed")
    rungs = read_json(tmp_path / "run" / "summary.json")["rungs"]
    assert [rung["name"] for rung in rungs] == ["full_precision", "init", "stage1", "stage2"]
    for rung in rungs:
        assert rung["geneval"] is None
        assert rung["clip_score"] is None
        assert rung["images"] == 2
    assert rungs[1]["image_mse"] > 0
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_an_image_folder_that_is_not_there(config, tmp_path):
    missing = {**config, "data": {**config["data"], "train_data_dir": str(tmp_path / "none")}}
    with pytest.raises(InputError, match="none"):
        Run(RunConfig.model_validate(missing), tmp_path / "run").execute(until="analyze")
    assert not (tmp_path / "run" / "sensitivity.json").exists()
