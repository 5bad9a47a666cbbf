"""Models that are not packed, in every command that takes one: video models and ControlNets end in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

from ..command import refusal, run
from ..tiny.kinds import build_sd

VIDEO = ("CogVideoXTransformer3DModel", "WanTransformer3DModel", "HunyuanVideoTransformer3DModel")
VIDEO += (
    "LTXVideoTransformer3DModel",
    "MochiTransformer3DModel",
    "UNet3DConditionModel",
    "UNetSpatioTemporalConditionModel",
)
COMMANDS: dict[str, Callable[[Path], list[object]]] = {
    "plan": lambda folder: ["plan", folder],
    "init": lambda folder: ["init", folder, "--bits", 1.99, "--out", folder / "out"],
    "calibrate": lambda folder: ["init", folder, "--bits", 1.99, "--calibrate", "--out", folder / "out"],
    "dry run": lambda folder: ["init", folder, "--bits", 2, "--calibrate", "--dry-run", "--out", folder / "out"],
    "analyze": lambda folder: ["analyze", folder, "--data", folder, "--out", folder / "table.json"],
    "train": lambda folder: ["train", folder / "stage.yaml", "--out", folder / "out"],
    "train dry run": lambda folder: ["train", folder / "stage.yaml", "--dry-run", "--out", folder / "out"],
    "generate": lambda folder: ["generate", folder, "a cat", "--out", folder / "out"],
}


def pipeline_of(folder: Path, kind: str) -> Path:
    """The small files of a pipeline whose denoiser is of this class, and a stage that would train it."""
    component = "unet" if kind.startswith("UNet") else "transformer"
    index = {"_class_name": "SomePipeline", component: ["diffusers", kind]}
    stage = {"stage": 1, "train_batch_size": 1, "max_train_steps": 1, "learning_rate": 1e-4}
    data = {"kind": "imagefolder", "train_data_dir": str(folder), "resolution": 16}
    config = {"model": str(folder), "data": data, "recipe": "uniform:2", "training": stage}
    (folder / component).mkdir(parents=True)
    (folder / component / "config.json").write_text(json.dumps({"_class_name": kind}), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "stage.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", VIDEO)
@pytest.mark.parametrize("command", COMMANDS)
def test_video_models(command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pipeline_of(tmp_path / "video", kind)
    said = refusal(capsys, *COMMANDS[command](folder))
    assert f"is a {kind}, which makes videos, wanted a UNet2DConditionModel or an image transformer" in said
    assert len(said) < 200 + len(str(folder))


@pytest.mark.parametrize("kind", ["ControlNetModel", "FluxControlNetModel", "SD3ControlNetModel", "T2IAdapter"])
def test_what_steers_another_model(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}), encoding="utf-8")
    for command in ("plan", "init"):
        said = refusal(capsys, *COMMANDS[command](tmp_path))
        assert f"got a {kind}, which steers another model, wanted" in said


def test_a_controlnet_beside_a_unet_stays_dense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = build_sd(lambda **parts: StableDiffusionControlNetPipeline(controlnet=_steering(parts["unet"]), **parts))
    pipeline.save_pretrained(tmp_path / "dense")
    init = ["init", tmp_path / "dense", "--recipe", "uniform:2", "--quiet"]
    assert run(*init, "--whole", "--out", tmp_path / "packed") == 0
    capsys.readouterr()
    assert run("inspect", tmp_path / "packed", "--json") == 0
    parts = json.loads(capsys.readouterr().out)["pipeline"]["components"]
    assert {name: parts[name]["form"] for name in ("unet", "vae", "controlnet")} == {
        "unet": "packed",
        "vae": "packed",
        "controlnet": "dense",
    }
    assert run("verify", tmp_path / "packed") == 0
    loaded = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "packed", safety_checker=None)
    assert isinstance(loaded.controlnet, ControlNetModel)
    capsys.readouterr()
    for command in (
        ["generate", tmp_path / "packed", "red circle", "--out", tmp_path / "drawn", "--quiet"],
        [*init, "--calibrate", "--out", tmp_path / "calibrated"],
    ):
        assert "draws from a picture" in refusal(capsys, *command)


def _steering(unet: object) -> ControlNetModel:
    made: ControlNetModel = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4))
    return made
