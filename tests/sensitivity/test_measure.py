from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from bitsfusion.architectures.registry import layers_to_assign, model_layers
from bitsfusion.diffusion.time_features.layers import time_outputs_width
from bitsfusion.errors import InputError
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit
from bitsfusion.recipe import assign, check_fits
from bitsfusion.sensitivity.measure import analyze
from bitsfusion.sensitivity.noise import noisy_latents
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.paper import PaperMethod, _quantized_alone
from bitsfusion.sensitivity.settings import NoiseErrorSettings, PaperSettings
from bitsfusion.sensitivity.table import read_table

from ..tiny.pipeline import build_one_block_pipeline
from ..tiny.scorer import build_scorer
from ..tiny.text import PROMPTS
from .random_data import RandomData

CHEAP = NoiseErrorSettings(samples=6, batch_size=4)
NAMES = {"model": "tiny", "source_sha256": "f" * 64}


@pytest.fixture
def paper():
    return PaperSettings(
        prompts=PROMPTS[:2], iterations=2, train_batch_size=4, learning_rate=1e-3, steps=2, image_batch_size=2
    )


@pytest.fixture(scope="module")
def cheap_table(pipeline, tmp_path_factory):
    return analyze(pipeline, CHEAP, tmp_path_factory.mktemp("cheap") / "s.json", RandomData(), **NAMES)


def values(table):
    return [row.model_dump(exclude={"seconds"}) for row in table.rows]


class Stop(Exception):
    pass


def stop_at(count):
    def progress(done, total):
        if done == count:
            raise Stop

    return progress


def test_every_layer_at_every_width(pipeline, cheap_table):
    layers = layers_to_assign(pipeline.unet)
    assert [(row.layer, row.bits) for row in cheap_table.rows] == [(n, b) for n in layers for b in (1, 2, 3)]
    assert cheap_table.layers == {name: info.numel for name, info in layers.items()}
    assert set(cheap_table.first_last) == {"conv_in", "conv_out"}
    assert "time_embedding.linear_1" in cheap_table.removed
    assert cheap_table.feature_values == 50 * time_outputs_width(pipeline.unet)
    assert all(row.clip_drop is None and row.psnr is None for row in cheap_table.rows)
    assert cheap_table.settings["samples"] == 6 and cheap_table.settings["data"] == "random"


def test_fewer_bits_are_worse(cheap_table):
    one, two, three = (np.asarray(list(cheap_table.column("mse", bits).values())) for bits in (1, 2, 3))
    assert (three > 0).all()
    assert (one > two).mean() > 0.8 and (two > three).mean() > 0.8
    assert one.mean() > 2 * two.mean() > 4 * three.mean()


def test_is_the_error_of_the_fake_quantized_model(pipeline, cheap_table):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    inputs = noisy_latents(pipeline, RandomData(), 0, 6, 0, spread=True)
    student = copy.deepcopy(pipeline.unet)
    fake_quantize_model(student, {name: 1}, ScaleInit.EXACT)
    with torch.no_grad():
        expected = (inputs.predict(student) - inputs.predict(pipeline.unet)).square().mean()
    assert cheap_table.row(name, 1).mse == pytest.approx(float(expected), rel=1e-4)


def test_calibration_is_fixed_and_spread(pipeline):
    data = RandomData()
    inputs = noisy_latents(pipeline, data, 3, 5, 1, spread=True)
    assert inputs.timesteps.tolist() == [0, 200, 400, 600, 800]
    again = noisy_latents(pipeline, data, 3, 5, 1, spread=True)
    assert torch.equal(inputs.noisy, again.noisy)
    assert torch.equal(*(s.conditioning.tensors["encoder_hidden_states"] for s in (inputs, again)))
    assert not torch.equal(inputs.noisy, noisy_latents(pipeline, data, 3, 5, 2, spread=True).noisy)
    # At t = 0 there is hardly any noise.
    clean = data.batch(3, 0, 1, 5).latents
    assert (inputs.noisy[0] - clean[0]).abs().max() < 0.2 < (inputs.noisy[4] - clean[4]).abs().max()


def test_resumes_with_the_same_rows(pipeline, cheap_table, tmp_path):
    out = tmp_path / "s.json"
    with pytest.raises(Stop):
        analyze(pipeline, CHEAP, out, RandomData(), **NAMES, progress=stop_at(20))
    journal = tmp_path / "s.json.journal"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 21 and not out.exists()
    # As a kill may leave it: half the rows, and a line cut short.
    journal.write_text("".join(lines[:11]) + lines[11][:25])
    seen = []
    table = analyze(
        pipeline, CHEAP, out, RandomData(), **NAMES, progress=lambda done, total: seen.append((done, total))
    )
    total = len(cheap_table.rows)
    assert seen == [(done, total) for done in range(10, total + 1)]
    assert values(table) == values(cheap_table)
    assert [row.model_dump() for row in table.rows[:10]] == [json.loads(line) for line in lines[1:11]]  # not remeasured
    assert read_table(out) == table and not journal.exists()


def test_finished_work_is_not_done_again_but_other_work_is(pipeline, tmp_path):
    out = tmp_path / "s.json"
    first = analyze(pipeline, CHEAP, out, RandomData(), **NAMES)
    seen = []
    again = analyze(pipeline, CHEAP, out, RandomData(), **NAMES, progress=lambda d, t: seen.append(d))
    assert again == first and len(seen) == 1
    other = analyze(pipeline, CHEAP.model_copy(update={"seed": 1}), out, RandomData(), **NAMES)
    assert values(other) != values(first)
    assert read_table(out) == other


@pytest.mark.parametrize("change", ["settings", "data", "source"])
def test_a_journal_of_other_work_is_started_over(pipeline, tmp_path, change):
    out = tmp_path / "s.json"
    with pytest.raises(Stop):
        analyze(pipeline, CHEAP, out, RandomData(), **NAMES, progress=stop_at(5))
    settings = CHEAP.model_copy(update={"seed": 1}) if change == "settings" else CHEAP
    data = RandomData("others") if change == "data" else RandomData()
    names = NAMES | ({"source_sha256": "0" * 64} if change == "source" else {})
    seen = []
    with pytest.raises(Stop):
        analyze(pipeline, settings, out, data, **names, progress=lambda d, t: seen.append(d) or stop_at(1)(d, t))
    assert seen == [0, 1]


def test_the_unet_is_left_as_it_was(pipeline, paper):
    before = copy.deepcopy(pipeline.unet.state_dict())
    modules = dict(pipeline.unet.named_modules())
    NoiseError(pipeline, CHEAP, RandomData()).measure("conv_in", 1)
    method = PaperMethod(pipeline, paper, RandomData())
    method.measure("up_blocks.0.resnets.0.conv_shortcut", 1)
    after = pipeline.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert dict(pipeline.unet.named_modules()) == modules
    assert all(parameter.requires_grad for parameter in pipeline.unet.parameters())


def test_paper_method_measures_images(pipeline, paper):
    name = "up_blocks.0.resnets.0.conv_shortcut"
    scorer = build_scorer()

    def distance(a, b):
        return np.abs(a.astype(float) - b.astype(float)).mean(axis=(1, 2, 3))

    method = PaperMethod(pipeline, paper, RandomData(), scorer, distance)
    rows = {bits: method.measure(name, bits) for bits in (1, 3)}
    assert rows[1]["mse"] > rows[3]["mse"] > 0
    assert rows[1]["psnr"] < rows[3]["psnr"]
    assert rows[1]["lpips"] > rows[3]["lpips"]
    assert rows[1]["clip_drop"] != 0 and abs(rows[1]["clip_drop"]) < 2
    fresh = PaperMethod(pipeline, paper, RandomData(), scorer, distance)
    assert fresh.measure(name, 3) == rows[3]  # whatever was measured before


def test_paper_method_trains_the_layer(pipeline, paper):
    """Training brings the quantized model's noise nearer to the full-precision model's."""
    name = "up_blocks.0.resnets.0.conv_shortcut"
    settings = paper.model_copy(update={"iterations": 30, "train_batch_size": 16, "learning_rate": 3e-4})
    method = PaperMethod(pipeline, settings, RandomData())
    inputs = noisy_latents(pipeline, RandomData(), 999, 32, 5, spread=True)

    @torch.no_grad()
    def error(unet):
        return float((inputs.predict(unet) - wanted).square().mean())

    with torch.no_grad():
        wanted = inputs.predict(pipeline.unet)
    with _quantized_alone(pipeline.unet, name, 2, settings) as layer:
        start, scale = error(pipeline.unet), layer.scale.clone()
        method._train(layer)
        assert error(pipeline.unet) < 0.8 * start
        assert not torch.equal(layer.scale, scale)
    assert error(pipeline.unet) == 0


def test_paper_table_and_the_way_to_a_recipe(pipeline, paper, tmp_path):
    settings = paper.model_copy(update={"iterations": 1, "steps": 1})
    table = analyze(pipeline, settings, tmp_path / "s.json", RandomData(), **NAMES, scorer=build_scorer())
    assert table.method == "paper" and table.settings["prompts"] == list(paper.prompts)
    assert all(row.clip_drop is not None and row.psnr is not None and row.lpips is None for row in table.rows)
    layers = model_layers(pipeline.unet)
    for strategy in ("paper", "optimal"):
        recipe = assign(table, 6.0, strategy)
        check_fits(recipe, layers)
        assert recipe.average_bits <= 6.0
    assert assign(table, 6.0, "paper").provenance["clip_bonus"]


def test_refuses_broken_weights(tmp_path):
    pipeline = build_one_block_pipeline()
    with torch.no_grad():
        pipeline.unet.get_submodule("down_blocks.0.resnets.0.conv1").weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"NaN or infinite values in down_blocks\.0\.resnets\.0\.conv1\.weight"):
        analyze(pipeline, CHEAP, tmp_path / "s.json", RandomData(), **NAMES)


def test_settings_refuse_unknown_keys():
    with pytest.raises(ValueError, match="colour"):
        NoiseErrorSettings.model_validate({"colour": "red"})
