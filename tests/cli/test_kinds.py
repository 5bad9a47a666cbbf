"""Every command on every kind of pipeline: each works, or ends in one line."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from bitsfusion.cli.main import main

from ..tiny.kinds import KINDS, TEXT_TO_IMAGE
from ..tiny.pictures import captioned as captioned_pictures

TRAINED = ("sd1", "sd2", "sdxl", "refiner", "lcm")
"""The kinds whose denoiser is given a text and no image: they are measured and trained."""
PICTURE_LINE, IMAGE_LINE = "draws from a picture", "got a UNet of"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned_pictures(tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A kind's folder with source/ and packed/ of it, made at its first use."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            KINDS[kind]().save_pretrained(folder / "source")
            options = ["--recipe", "uniform:4", "--whole", "--quiet"]
            assert run("init", folder / "source", *options, "--out", folder / "packed") == 0
            made[kind] = folder
        return made[kind]

    return of


def ends(works: bool, code: int, capsys: pytest.CaptureFixture[str], line: str) -> bool:
    """Whether the command worked, as it should; otherwise it said one line with `line` in it."""
    said = capsys.readouterr().err.strip().splitlines()
    if works:
        assert code == 0, said
    else:
        assert code == 2 and len(said) == 1 and line in said[0], said
    return works


@pytest.mark.parametrize("kind", KINDS)
def test_verify_and_inspect(kind: str, folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    packed = folders(kind) / "packed"
    capsys.readouterr()
    assert run("verify", packed, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    files = [file for file in packed.rglob("*") if file.is_file()]
    assert found["whole"] and found["files"] == len(files) - 1 and "unet" in found["packed"]
    assert run("inspect", packed, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pipeline"]["components"].keys() == {p.name for p in packed.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_generate(
    kind: str, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("generate", folders(kind) / "packed", "red circle", "--steps", 2, "--out", tmp_path / "d", "--quiet")
    drawn = ends(kind in TEXT_TO_IMAGE, code, capsys, PICTURE_LINE)
    assert (tmp_path / "d" / "0000.png").is_file() == (tmp_path / "d").exists() == drawn


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate(
    kind: str, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("red circle\nblue circle\n", encoding="utf-8")
    folder, out = folders(kind), tmp_path / "out"
    command = [
        "evaluate",
        folder / "packed",
        "--against",
        folder / "source",
        "--metrics",
        "mse",
        "--steps",
        2,
        "--quiet",
    ]
    command += ["--prompts", tmp_path / "prompts.txt", "--out", out]
    code = run(*command)  # by PNDM, which consistency models cannot draw with
    line = "wanted one that LatentConsistencyModelPipeline" if kind == "lcm" else PICTURE_LINE
    ends(kind in TEXT_TO_IMAGE and kind != "lcm", code, capsys, line)
    if kind == "lcm":
        assert run(*command, "--sampler", "own") == 0
    if kind in TEXT_TO_IMAGE:
        assert 0 < json.loads((out / "scores.json").read_text())["results"][0]["to_original"]["mean"] < 1


@pytest.mark.parametrize("kind", KINDS)
def test_card(kind: str, folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    packed = folders(kind) / "packed"
    assert run("card", packed, "--license", "mit", "--quiet") == 0
    capsys.readouterr()
    if kind not in TEXT_TO_IMAGE:
        code = run("card", packed, "--license", "mit", "--prompt", "red circle", "--quiet")
        ends(False, code, capsys, PICTURE_LINE)
    (packed / "README.md").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_plan_and_export(
    kind: str, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders(kind)
    assert run("plan", folder / "source", "--bits", 4) == 0
    code = run("export", folder / "packed", "--to", "dense", "--out", tmp_path / "dense", "--quiet")
    assert code == 0, capsys.readouterr().err
    assert (tmp_path / "dense" / "model_index.json").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_analyze_assign_and_timesteps(
    kind: str, folders: Callable[[str], Path], captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table, recipe = folders(kind), tmp_path / "table.json", tmp_path / "recipe.json"
    data = ["--data", captioned, "--resolution", 16]
    code = run("analyze", folder / "source", *data, "--samples", 2, "--out", table, "--quiet")
    if ends(kind in TRAINED, code, capsys, IMAGE_LINE):
        assert run("assign", table, "--bits", 2.5, "--out", recipe) == 0 and recipe.is_file()
    curve = tmp_path / "curve.json"
    arguments = [*data, "--points", 2, "--samples", 2, "--out", curve]
    code = run("timesteps", folder / "source", folder / "packed", *arguments)
    assert ends(kind in TRAINED, code, capsys, IMAGE_LINE) == curve.is_file()


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_analyze_and_timesteps_on_every_kind_of_data(
    form: str, folders: Callable[[str], Path], captioned: Path, tmp_path: Path
) -> None:
    images = sorted(captioned.glob("*.png"))
    if form == "tar":
        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            for image in images:
                (tmp_path / "caption.txt").write_text("red circle")
                tar.add(image, image.name)
                tar.add(tmp_path / "caption.txt", f"{image.stem}.txt")
    else:
        table = pyarrow.table({"image": [image.read_bytes() for image in images], "text": ["red circle"] * len(images)})
        pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    data = ["--data", tmp_path / f"0.{form}", "--resolution", 16, "--samples", 2]
    source = folders("sd1") / "source"
    assert run("analyze", source, *data, "--out", tmp_path / "table.json", "--quiet") == 0
    assert run("timesteps", source, folders("sd1") / "packed", *data, "--points", 2, "--out", tmp_path / "c.json") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_pack(
    kind: str, folders: Callable[[str], Path], captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = folders(kind), tmp_path / "stage1"
    stage = {"stage": 1, "train_batch_size": 2, "max_train_steps": 2, "learning_rate": 1e-4}
    config = {
        "model": str(folder / "source"),
        "data": {"kind": "imagefolder", "train_data_dir": str(captioned), "resolution": 16},
        "recipe": "uniform:2",
        "training": stage,
    }
    (tmp_path / "stage1.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    code = run("train", tmp_path / "stage1.yaml", "--out", out, "--quiet")
    if ends(kind in TRAINED, code, capsys, IMAGE_LINE):
        assert run("pack", out, "--out", tmp_path / "packed", "--quiet") == 0, capsys.readouterr().err
        assert run("verify", tmp_path / "packed") == 0


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        pytest.param(kind, preset, marks=() if preset == usual else pytest.mark.slow)
        for kind, usual in {
            "sd1": "sd15",
            "sd2": "sd15_one_gpu",
            "sdxl": "sdxl_one_gpu",
            "refiner": "sdxl_one_gpu",
            "lcm": "sd15",
        }.items()
        for preset in ("sd15", "sd15_one_gpu", "sdxl_one_gpu")
    ],
)
def test_run_dry_run_prints_the_cost(
    kind: str, preset: str, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A preset, on another model: memory and days of both stages. A kind's usual preset is quick, the others slow."""
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / f"{preset}.yaml").read_text(encoding="utf-8"))
    config = {**config, "model": str(folders(kind) / "source")}
    config["data"] = {**config["data"], "resolution": 16}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    capsys.readouterr()
    code = run("run", tmp_path / "run.yaml", "--dry-run", "--json", "--gpus", 1, "--out", tmp_path / "out")
    assert code == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    samples = {name: stage["samples_per_step"] for name, stage in plan.items()}
    assert samples == ({"stage 1": 256, "stage 2": 1024} if preset == "sd15" else {"stage 1": 64, "stage 2": 64})
    assert all(stage["bytes_per_gpu"] > 0 and stage["days"] > 0 for stage in plan.values())
    assert not (tmp_path / "out").exists()
