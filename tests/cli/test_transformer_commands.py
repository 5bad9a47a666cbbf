"""Every command on a pipeline of each class of diffusion transformer, and what users do with the packed one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline

import bitsfusion  # noqa: F401  registers the format
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.nn.packed import PACKED_LAYERS
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.packing import init_pipeline

from ..command import run
from ..tiny.pictures import captioned
from ..tiny.transformers import CONFIGS, build_transformer_pipeline

peft = pytest.importorskip("peft")

FLUX = "FluxTransformer2DModel"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in CONFIGS} | {
    "FLUX.1 dev": (FLUX, {"guidance_embeds": True})
}
"""Case -> class and changes to its config. Plain FLUX.1 is as schnell, without guidance."""

LIKE_ANOTHER = {"FLUX.1 dev", "AuraFlowTransformer2DModel", "SanaTransformer2DModel"}
CASES = [pytest.param(case, marks=pytest.mark.slow) if case in LIKE_ANOTHER else case for case in MODELS]
"""Those whose code is much as another's are slow."""

OFFLOADED = {FLUX, "SD3Transformer2DModel"}
"""The classes that are offloaded too: which modules move where has nothing to do with the class."""

SIZE = 32
"""Pixels of a side, which all VAEs and patches divide."""

LORA = ("to_q", "to_k", "to_v", "linear_in", "linear_out")
Folders = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A case's dense and packed folder, made at the first use."""
    made: dict[str, tuple[Path, Path]] = {}

    def of(case: str) -> tuple[Path, Path]:
        if case not in made:
            folder = tmp_path_factory.mktemp("model")
            name, changes = MODELS[case]
            build_transformer_pipeline(name, **changes).save_pretrained(folder / "dense")
            options = ["--recipe", "uniform:3", "--whole", "--quiet"]
            assert run("init", folder / "dense", *options, "--out", folder / "packed") == 0
            made[case] = folder / "dense", folder / "packed"
        return made[case]

    return of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned(tmp_path_factory.mktemp("pictures"))


def load(folder: Path) -> Any:
    """By the pipeline's class, as users load it; Stable Diffusion 3 without its T5 has to be told so."""
    kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    without = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if kind is StableDiffusion3Pipeline else {}
    pipeline = kind.from_pretrained(folder, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any) -> np.ndarray:
    images: np.ndarray = generate_images(pipeline, ["red circle"], [3], 2, 2.0, "own", size=SIZE)
    return images


def adapt(model: Any) -> None:
    """A LoRA on attention and feed-forward; PixArt's class takes none by itself."""
    torch.manual_seed(0)
    adapter = peft.LoraConfig(r=2, lora_alpha=2, target_modules=list(LORA))
    if hasattr(model, "add_adapter"):
        model.add_adapter(adapter)
    else:
        peft.inject_adapter_in_model(adapter, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("case", CASES)
def test_served_as_diffusers_serves_it(case: str, folders: Folders, tmp_path: Path) -> None:
    dense, packed = folders(case)
    assert run("verify", packed) == 0
    assert run("inspect", packed) == 0
    small = load(packed)
    assert type(small) is type(load(dense))
    whole = ("transformer", "text_encoder", "vae")
    assert all(any(isinstance(p, PACKED_LAYERS) for p in getattr(small, part).modules()) for part in whole)
    picture = draw(small)
    assert picture.shape[1:] == (SIZE, SIZE, 3)

    small.save_pretrained(tmp_path / "again")
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / file).read_bytes() == (packed / file).read_bytes()
    assert run("verify", tmp_path / "again") == 0

    pictures = []
    for pipeline in (small, load(packed)):
        if pipeline is not small:
            pipeline.transformer.dequantize()
            assert np.array_equal(draw(pipeline), picture)
        adapt(pipeline.transformer)
        pictures.append(draw(pipeline))
        for part in pipeline.transformer.modules():
            if isinstance(part, peft.tuners.tuners_utils.BaseTunerLayer):
                part.enable_adapters(False)
        assert np.array_equal(draw(pipeline), picture)
    assert np.array_equal(*pictures) and not np.array_equal(pictures[0], picture)

    if case not in OFFLOADED:
        return
    moved = load(packed)
    moved.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(draw(moved), picture)
    layered = load(packed)
    accelerate.cpu_offload(layered.transformer, execution_device=torch.device("cpu"), offload_buffers=True)
    assert np.array_equal(draw(layered), picture)


@pytest.mark.parametrize("case", CASES)
def test_the_steps_of_the_method(case: str, folders: Folders, pictures: Path, tmp_path: Path) -> None:
    dense, _ = folders(case)
    data = ["--data", pictures, "--resolution", 16, "--samples", 2, "--quiet"]
    table, recipe = tmp_path / "table.json", tmp_path / "recipe.json"
    assert run("analyze", dense, *data, "--method", "jacobian", "--out", table) == 0
    assert run("assign", table, "--bits", 7, "--out", recipe) == 0

    settings = CalibrationSettings(samples=2, steps=1, size=16, rows=64)
    init_pipeline(str(dense), tmp_path / "made", recipe=str(recipe), calibration=CalibrationJob(settings=settings))
    assert run("verify", tmp_path / "made") == 0

    drawn = ["--steps", 2, "--size", SIZE, "--quiet"]
    assert run("generate", tmp_path / "made", "red circle", *drawn, "--out", tmp_path / "drawn") == 0
    assert (tmp_path / "drawn" / "0000.png").is_file()
    (tmp_path / "prompts.txt").write_text("red circle\nblue circle\n", encoding="utf-8")
    sides = [tmp_path / "made", "--against", dense, "--metrics", "mse", "--prompts", tmp_path / "prompts.txt"]
    assert run("evaluate", *sides, *drawn, "--out", tmp_path / "scores") == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert 0 < scores["results"][0]["to_original"]["mean"] < 1

    config = {
        "model": str(dense),
        "data": {"kind": "imagefolder", "train_data_dir": str(pictures), "resolution": 16},
        "recipe": str(recipe),
        "training": {"stage": 1, "train_batch_size": 2, "max_train_steps": 2, "learning_rate": 1e-4},
    }
    (tmp_path / "stage1.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert run("train", tmp_path / "stage1.yaml", "--out", tmp_path / "stage1", "--quiet") == 0
    assert run("pack", tmp_path / "stage1", "--model", dense, "--out", tmp_path / "trained", "--quiet") == 0
    assert run("verify", tmp_path / "trained") == 0
