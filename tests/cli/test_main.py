"""Commands as users call them: what they print, what they leave behind, how they fail."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.cli.main import main
from bitsfusion.io.hashes import sha256_folder
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.pipelines.load import load_pipeline

from .. import forked
from ..command import refusal, run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A sensitivity table with made-up errors of the embedded model's layers, and the recipe from it."""
    folder = tmp_path_factory.mktemp("recipe")
    layers = model_layers(load_pipeline("embedded").unet)
    by_role = {role: {n: layer.numel for n, layer in layers.items() if layer.role is role} for role in LayerRole}
    rng = np.random.default_rng(0)
    rows = [
        {"layer": name, "bits": bits, "mse": float(rng.uniform(1, 2) / 4**bits), "seconds": 0.0}
        for name in by_role[LayerRole.QUANTIZED]
        for bits in (1, 2, 3)
    ]
    table = {
        "schema_version": 1,
        "model": "embedded",
        "source_sha256": None,
        "method": "noise_error",
        "settings": {},
        "layers": by_role[LayerRole.QUANTIZED],
        "removed": by_role[LayerRole.TIME],
        "first_last": by_role[LayerRole.FIRST_LAST],
        "feature_values": 50 * 832,
        "rows": rows,
    }
    write_json(folder / "sensitivity.json", table)
    main_ok("assign", folder / "sensitivity.json", "--out", folder / "recipe.json", "--bits", "1.99")
    return folder / "recipe.json"


@pytest.fixture(scope="module")
def packed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "model"
    main_ok("init", "embedded", "--recipe", recipe, "--cover", "pndm:50", "--out", folder)
    return folder


def main_ok(*arguments):
    assert run(*arguments) == 0


def test_assign_writes_a_recipe_within_the_budget(recipe):
    written = read_json(recipe)
    assert 1.9 < written["average_bits"] <= 1.99
    assert set(written["bits"].values()) <= set(range(1, 9))
    assert written["bits"]["conv_in"] == written["bits"]["conv_out"] == 8


def test_inspect_counts_every_byte(packed, capsys):
    main_ok("inspect", packed, "--json")
    counted = json.loads(capsys.readouterr().out)
    size = (packed / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert counted["bytes_on_disk"]["total"] == size
    assert counted["average_bits"] == pytest.approx(1.99, abs=0.01)
    assert counted["fallbacks"] == {}
    main_ok("inspect", packed)
    assert f"{size:,}" in capsys.readouterr().out


def test_inspect_says_what_time_features_stand_for_and_save(recipe, packed, tmp_path, capsys):
    """Beside the same model packed with its time layers."""
    main_ok("init", "embedded", "--recipe", recipe, "--cover", "any", "--out", tmp_path / "layers")
    capsys.readouterr()
    main_ok("inspect", tmp_path / "layers", "--json")
    whole = json.loads(capsys.readouterr().out)
    assert whole["removed"] is None
    main_ok("inspect", packed, "--json")
    small = json.loads(capsys.readouterr().out)
    kept = {layer["name"] for layer in small["layers"]}
    gone = [layer for layer in whole["layers"] if layer["name"] not in kept]
    features, layers = 2 * 50 * 832, sum(layer["bytes_in_memory"] for layer in gone)
    assert small["removed"] == {
        "layers": len(gone),
        "weights": sum(layer["weights"] for layer in gone),
        "bits": 8,
        "layer_bytes": layers,
        "feature_bytes": features,
        "saved": layers - features,
    }
    main_ok("inspect", tmp_path / "layers")
    assert "time layers removed" not in capsys.readouterr().out
    main_ok("inspect", packed)
    assert (
        f"time layers removed         {len(gone)} layers, {small['removed']['weights']:,} weights, packed at 8 bits "
        f"{layers:,} bytes: 83,200 bytes of features in their place save {layers - features:,}\n"
    ) in capsys.readouterr().out


def test_generate_draws_and_records(packed, tmp_path, capsys):
    out = tmp_path / "images"
    main_ok(
        "generate", packed, "a red circle", "two squares", "--out", out, "--seed", "7", "--guidance", "2", "--quiet"
    )
    assert capsys.readouterr().out.splitlines() == [str(out / "0000.png"), str(out / "0001.png")]
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [(line["text"], line["seed"]) for line in lines] == [("a red circle", 7), ("two squares", 8)]
    assert Image.open(out / "0001.png").size == (64, 64)


def test_verify_names_the_broken_layer(packed, capsys, tmp_path):
    main_ok("verify", packed)
    capsys.readouterr()
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", packed, broken], check=True)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name.endswith("conv_shortcut.packed"))
    data[8 + length + header[name]["data_offsets"][1] - 3] ^= 0x10
    weights.write_bytes(data)
    assert run("verify", broken) == 1
    layer, file = capsys.readouterr().err.strip().splitlines()
    assert name.removesuffix(".packed") in layer and weights.name in file


def test_a_step_that_is_not_covered(packed, capsys, tmp_path):
    line = refusal(capsys, "generate", packed, "a red circle", "--steps", "30", "--out", tmp_path, "--quiet")
    assert "is not cached" in line
    assert "pndm 50 steps" in line


def test_a_recipe_for_another_model(capsys, tmp_path, recipe):
    line = refusal(capsys, "init", "embedded", "--recipe", "sd15", "--out", tmp_path / "x")
    assert "sd15" in line
    assert "down_blocks.0.attentions.1" in line
    values = read_json(recipe)
    removed = values["bits"].pop("mid_block.attentions.0.proj_in")
    write_json(tmp_path / "r.json", values)
    assert removed
    line = refusal(capsys, "init", "embedded", "--recipe", tmp_path / "r.json", "--out", tmp_path / "x")
    assert "mid_block.attentions.0.proj_in" in line
    values["bits"]["mid_block.attentions.0.proj_in"] = 9
    write_json(tmp_path / "r.json", values)
    line = refusal(capsys, "init", "embedded", "--recipe", tmp_path / "r.json", "--out", tmp_path / "x")
    assert "mid_block.attentions.0.proj_in" in line
    assert "9" in line
    assert not (tmp_path / "x").exists()


def test_bits_or_a_recipe(capsys, tmp_path):
    line = refusal(capsys, "init", "embedded", "--recipe", "uniform:2", "--bits", "1.99", "--out", tmp_path / "x")
    assert "recipe, bits: got both, wanted one of them" in line
    assert "got neither" in refusal(capsys, "init", "embedded", "--out", tmp_path / "x")
    main_ok("init", "embedded", "--bits", "1.99", "--out", tmp_path / "x", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["folder"] == str(tmp_path / "x") and printed["notes"] == []
    assert 1.98 < printed["average_bits"] <= 1.99


def test_a_unet_whose_time_features_cannot_be_cached(capsys, tmp_path):
    """Init continues, and says what it did."""
    pipeline = load_pipeline("embedded")
    pipeline.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "time_cond_proj_dim": 8})
    unet.save_pretrained(tmp_path / "model" / "unet")
    main_ok("init", tmp_path / "model", "--recipe", "uniform:2", "--out", tmp_path / "x", "--quiet")
    note, result, *_ = capsys.readouterr().out.splitlines()
    assert note.startswith("note: time layers stay, at 8 bits and for any sampler: the model has time_cond_proj_dim")
    assert result.startswith(str(tmp_path / "x"))
    line = refusal(capsys, "init", tmp_path / "model", "--recipe", "uniform:2", "--cover", "pndm:50", "--out", "y")
    assert "time_cond_proj_dim" in line and "keep the time layers at 8 bits instead" in line


def test_an_average_that_cannot_be_met(capsys, recipe, tmp_path):
    line = refusal(
        capsys, "assign", recipe.with_name("sensitivity.json"), "--out", tmp_path / "r.json", "--bits", "0.5"
    )
    assert "got 0.5 bits on average, wanted 1." in line
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("command", ["init", "generate", "analyze"])
def test_a_model_that_is_not_there(command, capsys, tmp_path, recipe):
    missing = tmp_path / "missing"
    more = {
        "init": ["--recipe", recipe, "--out", tmp_path / "x"],
        "generate": ["a red circle"],
        "analyze": ["--out", tmp_path / "x", "--data", tmp_path],
    }[command]
    assert f"{missing}: no such folder" in refusal(capsys, command, missing, *more)
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_folder_that_may_not_be_read(capsys, packed, tmp_path, command):
    folder = tmp_path / "packed"
    shutil.copytree(packed, folder)
    folder.chmod(0)
    try:
        line = refusal(capsys, command, folder)
    finally:
        folder.chmod(0o755)
    assert str(folder) in line and "got Permission denied, wanted a file or folder that this user may read" in line


def test_nan_weights_name_the_layer(capsys, tmp_path, recipe):
    pipeline = load_pipeline("embedded")
    pipeline.unet.mid_block.resnets[0].conv1.weight.data[0, 0, 0, 0] = float("nan")
    pipeline.save_pretrained(tmp_path / "model")
    line = refusal(capsys, "init", tmp_path / "model", "--recipe", recipe, "--out", tmp_path / "x")
    assert "mid_block.resnets.0.conv1: weight: got 1 NaN or infinite values" in line
    assert not (tmp_path / "x").exists()


def test_a_config_with_an_unknown_field(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("stage1: {stage: 1, learning_rat: 1.0}\n")
    line = refusal(capsys, "run", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert "c.yaml" in line
    assert "stage1.learning_rat" in line
    assert not (tmp_path / "run").exists()


def main_with_little_room(arguments, errors):
    """The command where no file can be larger than 500 kB; what it says on stderr goes to a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    with errors.open("w") as sys.stderr:
        main(arguments)


def test_a_full_disk_leaves_the_old_folder(packed, recipe, tmp_path):
    """A file size limit stops the write half way, as a full disk does."""
    before = sha256_folder(packed)
    arguments = ["init", "embedded", "--recipe", str(recipe), "--out", str(packed)]
    assert forked.run(main_with_little_room, arguments, tmp_path / "errors") == 1
    (line,) = (tmp_path / "errors").read_text().strip().splitlines()
    assert "could not be written" in line
    assert sha256_folder(packed) == before
    assert [path.name for path in packed.parent.iterdir()] == [packed.name]
