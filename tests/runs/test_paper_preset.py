"""configs/sd15.yaml, the paper's way: on a tiny pipeline up to packed bits, twice, and what it says of its cost."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from bitsfusion.artifact.verify import verify_folder
from bitsfusion.calibration.prompts import PROMPTS
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json
from bitsfusion.runs.config import PaperAnalysis, RunConfig, read_config
from bitsfusion.runs.run import Run
from bitsfusion.runs.stage import plan_analysis, plan_training
from bitsfusion.training.plan import Machine

from ..tiny.kinds import build_sd

PRESET = Path(__file__).parents[2] / "configs" / "sd15.yaml"
ONE_BLOCK = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
SMALL = {"train_batch_size": 2, "total_batch_size": 4, "max_train_steps": 2, "mixed_precision": "no"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny pipeline, captioned images, a file of prompts, and the preset with sizes to match."""
    folder = tmp_path_factory.mktemp("paper")
    build_sd(**ONE_BLOCK).save_pretrained(folder / "model")
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    for name in ("0.png", "1.png", "2.png", "3.png"):
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "images" / name)
    lines = [json.dumps({"file_name": f"{i}.png", "text": "red circle"}) for i in range(4)]
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "prompts.tsv").write_text("Prompt\tCategory\na red circle\tx\na cat\tx\na dog\tx\ntwo cats\tx\n")
    values = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    values["model"] = str(folder / "model")
    values["data"] |= {"train_data_dir": str(folder / "images"), "resolution": 16}
    values["data"]["latents_cache_dir"] = str(folder / "latents")
    values["analysis"] |= {"prompts": str(folder / "prompts.tsv"), "images": 2, "iterations": 1}
    values["analysis"] |= {"train_batch_size": 2, "sampler": "ddim", "steps": 1, "guidance": 1.0}
    values["recipe"]["target_bits"] = 3.0
    values["serve"] = {}
    values["stage1"] |= SMALL
    values["stage2"] |= SMALL
    values["evaluation"] |= {"clip": None, "prompts": str(folder / "prompts.tsv")}
    return folder, RunConfig.model_validate(values)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_equal_runs_pack_equal_folders_byte_for_byte(source):
    folder, config = source
    for name in ("one", "two"):
        Run(config, folder / name).execute(until="pack")
    first, second = files(folder / "one" / "packed"), files(folder / "two" / "packed")
    assert first.keys() == second.keys() and len(first) > 5
    assert [name for name in first if first[name] != second[name]] == []
    verify_folder(folder / "one" / "packed")


def test_it_measures_and_assigns_as_the_paper_does(source):
    folder, config = source
    Run(config, folder / "one").execute(until="init")
    table, recipe = read_json(folder / "one" / "sensitivity.json"), read_json(folder / "one" / "recipe.json")
    assert table["method"] == "paper" and table["settings"]["prompts"] == ["a red circle", "a dog"]
    assert all(row["psnr"] is not None for row in table["rows"])
    assert recipe["strategy"] == "paper" and recipe["provenance"]["filled"] == "off"
    assert set(recipe["bits"].values()) <= {1, 2, 3, 4, 8}


@pytest.mark.parametrize("gpus", [1, 32])
def test_total_batches_are_the_papers_on_any_number_of_gpus(source, gpus):
    _, config = source
    preset = read_config(PRESET).model_copy(update={"model": config.model, "data": config.data})
    machine = Machine(gpus=gpus)
    if gpus == 32:  # Stage I's 256 samples are 8 for each of 32
        halved = preset.stage1.model_copy(update={"train_batch_size": 8})
        preset = preset.model_copy(update={"stage1": halved})
    plans = plan_training(preset, machine)
    assert {name: (plan.samples_per_step, plan.steps) for name, plan in plans.items()} == {
        "stage 1": (256, 20_000),
        "stage 2": (1024, 50_000),
    }


def test_the_preset_is_the_papers():
    preset = read_config(PRESET)
    assert preset.analysis.method == "paper" and preset.analysis.number(preset.model) == 100
    assert (preset.recipe.strategy.value, preset.recipe.eta, preset.recipe.fill_up) == ("paper", 0.3, False)
    assert preset.scale_init.value == "alternating" and preset.serve.samplers == {"pndm": 50}
    for stage in (preset.stage1, preset.stage2):
        assert (stage.learning_rate, stage.lr_scheduler, stage.text_dropout) == (1e-5, "constant", 0.1)
        assert (stage.timesteps.kind, stage.timesteps.alpha, stage.timesteps.beta) == ("beta", 3.0, 1.0)
    assert preset.stage1.feature_weight == 0.01


def test_what_an_analysis_costs(source):
    """By hand: 3 candidates a layer; each trains (3 passes a sample) and draws; both once more for all together."""
    _, config = source
    plan = plan_analysis(config)
    shared = 1 * 2 + 2 * 1
    assert plan.passes == shared + plan.candidates * (3 * 2 + 2 * 1)
    assert plan.candidates % 3 == 0 and plan.flops > 0 and plan.days > 0


def test_prompts_of_an_analysis(tmp_path):
    assert PaperAnalysis(images=4).settings("a/model").prompts == (PROMPTS[0], PROMPTS[12], PROMPTS[24], PROMPTS[36])
    assert PaperAnalysis(prompts=("a", "b")).settings("a/model").prompts == ("a", "b")
    assert len(PaperAnalysis().settings("embedded").prompts) == 48
    with pytest.raises(InputError, match=r"got 2, wanted 3 or more \(analysis.images\)"):
        PaperAnalysis(prompts=("a", "b"), images=3).settings("a/model")
    with pytest.raises(InputError, match=r"none\.txt"):
        PaperAnalysis(prompts=tmp_path / "none.txt").settings("a/model")
