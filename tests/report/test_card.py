from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import yaml
from PIL import Image

from bitsfusion.artifact.inspect import Inspection, inspect_folder
from bitsfusion.artifact.reader import open_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.diffusion.samplers import SamplerSteps
from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.io.hashes import sha256_file
from bitsfusion.pipelines.load import EMBEDDED, load_pipeline
from bitsfusion.report.card import hub_id, known_license, write_card
from bitsfusion.report.charts import layer_chart
from bitsfusion.report.data import layer_rows
from bitsfusion.report.hub import push_to_hub
from bitsfusion.runs.folder import RunFolder
from bitsfusion.runs.packing import init_pipeline

from ..command import refusal, run
from ..hub import Hub, serve_hub

PROMPTS = ("a red circle", "two_blue *squares*")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tiny"
    init_pipeline(EMBEDDED, folder, recipe="uniform:2", samplers=[SamplerSteps("ddim", 3)])
    return folder


@pytest.fixture(scope="module")
def inspection(made: Path) -> Inspection:
    return inspect_folder(made)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "tiny")


def summary(inspection: Inspection) -> dict[str, Any]:
    """A run's summary, as `bitsfusion run` writes it, of two rungs."""
    rung = {"geneval": {"overall": 0.5, "interval": [0.25, 0.75]}, "clip_score": 0.75, "image_mse": None}
    return {
        "schema_version": 1,
        "model": EMBEDDED,
        "bits": {"average": inspection.average_bits},
        "rungs": [
            {"name": "full_precision", "bits": 32.0, **rung, "noise_loss": None},
            {"name": "stage2", "bits": inspection.average_bits, **rung, "geneval": None, "noise_loss": 0.0125},
        ],
        "settings": {
            "sampler": "ddim",
            "steps": 3,
            "guidance": 7.5,
            "seeds": [1024, 1031],
            "prompts": 8,
            "prompts_sha256": "ab" * 32,
            "training_seeds": [4, 5],
        },
    }


def scores(inspection: Inspection) -> dict[str, Any]:
    """What `bitsfusion evaluate` writes, of three metrics."""

    def estimate(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}

    clip = {"model": estimate(0.5), "against": estimate(0.7), "difference": estimate(-0.2) | {"verdict": "worse"}}
    return {
        "model": {"bits": {"average": inspection.average_bits, "true": inspection.true_bits}},
        "against": {"source": "some/original", "bits": None},
        "settings": {
            "sampler": "ddim",
            "steps": 3,
            "seeds": {"first": 1024, "count": 8},
            "prompts": "/home/someone/PartiPrompts.tsv",
            "prompts_sha256": "ab" * 32,
            "images": 8,
        },
        "metrics": {
            "clip": {"clip": "some/clip", "scale": 1},
            "mse": {},
            "fid": {"features": "inception", "reference": "/home/someone/coco", "reference_images": 9},
        },
        "results": [
            {"metric": "clip", "guidance": 7.5, **clip},
            {"metric": "mse", "guidance": 7.5, "to_original": estimate(0.25)},
            {"metric": "fid", "guidance": 7.5, "model": {"value": 21.5}, "against": {"value": 20.0}},
        ],
    }


def header(text: str) -> dict[str, Any]:
    opening, values, _ = text.split("---\n", 2)
    assert opening == ""
    return dict(yaml.safe_load(values))


def test_a_card_says_what_is_there(folder, inspection):
    text = write_card(folder, license="mit", base_model="some/original", prompts=PROMPTS).read_text()
    assert header(text) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "mit",
        "base_model": "some/original",
        "base_model_relation": "quantized",
        "tags": ["bitsfusion", "quantization", "low-bit", "diffusers", "text-to-image"],
    }
    assert f"| bits a weight, by the paper's formula | {inspection.average_bits:.4f} |" in text
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    times = inspection.bytes_fp16 / file.stat().st_size
    assert f"{file.stat().st_size / 1e6:.2f} MB, {times:.1f} times smaller" in text
    assert "| two\\_blue \\*squares\\* | 1025 |" in text
    assert "- recipe: uniform:2\n" in text and "ddim with 3 steps" in text
    pictures = re.findall(r"\((card/[^)]+png)\)", text)
    assert pictures == ["card/sample-00.png", "card/sample-01.png", "card/bits.png"]
    for name in pictures:
        with Image.open(folder / name) as image:
            image.load()


def test_a_card_makes_the_folder_again(folder, capsys, monkeypatch):
    """Its command, with the recipe beside it, gives the same bytes; the hashes are those of the files."""
    text = write_card(folder, license="mit").read_text()
    monkeypatch.chdir(folder)
    (command,) = re.findall(r"^bitsfusion init .*$", text, re.MULTILINE)
    assert command == ("bitsfusion init MODEL --recipe card/recipe.json --scale-init exact --cover ddim:3 --out tiny")
    words = command.replace("MODEL", EMBEDDED).replace("--out tiny", f"--out {folder.parent / 'again'}").split()[1:]
    assert run(*words, "--quiet") == 0
    weights = "unet/diffusion_pytorch_model.safetensors"
    again, first = (path / weights for path in (folder.parent / "again", folder))
    assert again.read_bytes() == first.read_bytes()
    assert f"| {first.stat().st_size:,} | `{sha256_file(first)}` |" in text
    assert text.count("safetensors | ") == len(list(folder.rglob("*.safetensors")))


def test_true_bits_of_the_whole_pipeline(folder):
    """Files of every component with weights, over all that the original's components hold but time layers' biases."""
    text = write_card(folder, license="mit").read_text()
    ((bits, count),) = re.findall(r": ([\d.]+) bits for each of its ([\d,]+) parameters", text)
    pipeline: Any = load_pipeline(EMBEDDED)
    models = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    wanted = sum(value.numel() for model in models.values() for value in model.parameters())
    removed = open_folder(folder).config.removed
    wanted -= sum(shape[0] for shape in removed.values())
    assert removed
    assert int(count.replace(",", "")) == wanted
    size = sum(file.stat().st_size for name in models for file in (folder / name).iterdir())
    assert float(bits) == pytest.approx(8 * size / wanted, abs=0.005)


def test_the_code_of_a_card_runs(folder, monkeypatch):
    """As it is written, beside the folder; with the same seed it would be the first sample's prompt."""
    text = write_card(folder, license="mit", prompts=PROMPTS[:1]).read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert (
        "DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)" in code
        and "num_inference_steps=3" in code
        and "'a red circle'" in code
    )
    monkeypatch.chdir(folder.parent)
    exec(compile(code, "README.md", "exec"), {})
    with Image.open(folder.parent / "image.png") as image:
        assert image.size == (64, 64)


def test_the_code_of_a_card_draws_what_its_samples_are(folder, monkeypatch):
    """From the sample's first noise, the pixels of the sample."""
    text = write_card(folder, license="mit", prompts=PROMPTS[:1]).read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {"seed": 1024}
    seeded = code.replace("guidance_scale", "latents=initial_latents(pipeline, [seed]), guidance_scale")
    exec(compile("from bitsfusion.pipelines.generation import initial_latents\n" + seeded, "README.md", "exec"), names)
    with Image.open(folder.parent / "image.png") as drawn, Image.open(folder / "card" / "sample-00.png") as sample:
        assert drawn.tobytes() == sample.tobytes()


def test_a_card_leaves_the_folder_whole(folder):
    """Verified, of the same hash for the run that packed it, and written again in the place of the first."""
    run = RunFolder(folder.parent / "run")
    packed = run.path / "packed"
    assert run.step("pack", {}, ["packed"], lambda: shutil.copytree(folder, packed) and None)
    first = write_card(packed, license="mit", prompts=PROMPTS[:1]).read_text()
    verify_folder(packed)
    assert not run.step("pack", {}, ["packed"], lambda: None)
    run.close()
    assert write_card(packed, license="mit", prompts=PROMPTS[:1]).read_text() == first
    write_card(packed, license="mit")
    assert sorted(path.name for path in (packed / "card").iterdir()) == ["bits.png", "recipe.json"]


def test_scores_of_a_run(folder, inspection):
    path = folder.parent / "summary.json"
    path.write_text(json.dumps(summary(inspection)))
    (folder.parent / "config.json").write_text('{"model": "embedded"}')
    text = write_card(folder, license="mit", scores=path).read_text()
    bits = f"{inspection.average_bits:.4g}"
    assert "| model | bits | GenEval (95 %) | CLIP score | noise loss |\n" in text
    assert "| full precision | 32 | 0.500 (0.250 to 0.750) | 0.75 | – |\n" in text
    assert f"| after Stage II | {bits} | – | 0.75 | 0.0125 |\n" in text
    assert "- images: 8 prompts (SHA-256 abababababababab), seeds 1024 to 1031\n" in text
    assert "bitsfusion run card/config.json" in text
    assert (folder / "card/config.json").read_text() == '{"model": "embedded"}'


def test_scores_of_evaluate(folder, inspection):
    path = folder.parent / "scores.json"
    path.write_text(json.dumps(scores(inspection)))
    text = write_card(folder, license="mit", scores=path).read_text()
    assert "| clip | 7.5 | 0.5 | 0.7 | -0.2 (-0.3 to -0.1) | worse |\n" in text
    assert "| mse | 7.5 | – | – | 0.25 (0.15 to 0.35) |  |\n" in text
    assert "| fid | 7.5 | 21.5 | 20 | – |  |\n" in text
    assert "- clip: clip some/clip, scale 1\n- fid: features inception, reference coco, reference_images 9\n" in text
    assert "prompts: PartiPrompts.tsv (SHA-256" in text and "/home" not in text


def test_scores_beside_pictures(folder, inspection):
    """Nothing that is not known is said of a folder of pictures with seeds of their own."""
    path, values = folder.parent / "scores.json", scores(inspection)
    values["against"] = {"source": "drawn/elsewhere", "bits": None, "pictures": {"sampler": None}}
    values["settings"]["seeds"] = [3, 9, 4]
    path.write_text(json.dumps(values))
    text = write_card(folder, license="mit", scores=path).read_text()
    assert "), 3 seeds\n" in text and "drawn/elsewhere" not in text


def test_scores_of_another_model_are_refused(folder, inspection):
    path = folder.parent / "scores.json"
    other, retrained = scores(inspection), scores(inspection)
    other["model"]["bits"]["average"] += 0.01
    retrained["model"]["bits"]["true"] += 0.001  # of the same recipe
    unknown = {"source": "some/images", "bits": None, "pictures": {"sampler": None}}
    pictures = {**scores(inspection), "model": unknown, "settings": {"seeds": None}}
    for content, words in (
        (other, "is of a model at"),
        (retrained, "is of a model at .* on disk, wanted"),
        (pictures, "is of the pictures in some/images, wanted scores of images that"),
        ({"rungs": 3, "bits": None}, "wanted a summary.json .* another form"),
        ({"results": []}, "wanted a summary.json"),
        ({"rungs": []}, "got none with 'settings'"),
        ([], "wanted a summary.json"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=words):
            write_card(folder, license="mit", scores=path)
    assert not (folder / "README.md").exists()


def test_what_is_published_of_the_original(tmp_path):
    """Hub ids are, folders' names are not; a license is taken from where it is written."""
    assert hub_id("some/original") == "some/original"
    assert [hub_id(name) for name in (None, "embedded", "./some/folder", "/a/b", "~/model", "a/b/c")] == [None] * 6
    (tmp_path / "README.md").write_text("---\nlicense: openrail++\n---\n# text\n")
    assert known_license(tmp_path / "none", str(tmp_path)) == "openrail++"
    assert known_license(tmp_path / "none", EMBEDDED) == "apache-2.0"
    assert known_license(tmp_path / "none", None) is None
    (tmp_path / "README.md").write_text("# no header\n---\nlicense: x\n---\n")
    assert known_license(tmp_path, None) is None


def test_huggingface_hub_reads_the_card(folder):
    path = write_card(folder, license="openrail++", base_model="some/original", prompts=['two: "lines"\n---\nof it'])
    card = huggingface_hub.ModelCard.load(path)
    assert (card.data.license, card.data.base_model, card.data.library_name) == (
        "openrail++",
        "some/original",
        "diffusers",
    )
    assert card.text.lstrip().startswith("# tiny, ") and "## How it was made" in card.text


def test_escaped_text_stays_in_its_cell(folder):
    text = write_card(folder, license="mit", prompts=["a | b\n*c* <i>", "&amp; ~~x~~"]).read_text()
    assert "| a \\| b \\*c\\* \\<i\\> | 1024 |" in text
    assert "| \\&amp; \\~\\~x\\~\\~ | 1025 |" in text


def test_bars_are_as_wide_as_weights_and_as_high_as_bits(inspection):
    (axis,) = layer_chart(layer_rows(inspection), inspection.average_bits).axes
    areas = [bar.get_width() * bar.get_height() for bar in axis.patches]
    kept = sum(layer.weights for layer in inspection.layers)
    assert len(areas) == len(inspection.layers)
    assert sum(areas) / 100 == pytest.approx(sum(x.bits * x.weights for x in inspection.layers) / kept)


def test_the_command(folder, inspection, capsys):
    """The run's scores are found, its model's license and prompts known; without a license there is one line."""
    assert "license: got none, wanted --license" in refusal(capsys, "card", folder, "--quiet")
    (folder.parent / "summary.json").write_text(json.dumps(summary(inspection)))
    assert run("card", folder, "--quiet") == 0 and capsys.readouterr().out.strip() == str(folder / "README.md")
    text = (folder / "README.md").read_text()
    assert header(text)["license"] == "apache-2.0" and "base_model" not in header(text)
    line = refusal(capsys, "card", folder, "--quiet", "--base-model", "some/where/else")
    assert "base model: got 'some/where/else', wanted the original's hub id" in line
    assert "## Scores" in text and text.count("card/sample-") == 6


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_some_token")
    with serve_hub() as server:
        yield server


def test_a_push_uploads_every_file_as_it_is(folder, hub):
    """Through huggingface_hub's own HfApi, over HTTP."""
    write_card(folder, license="mit", name="me/tiny")
    assert push_to_hub(folder, "me/tiny", private=True, endpoint=hub.url) == f"{hub.url}/me/tiny"
    assert [(made["name"], made["organization"]) for made in hub.created] == [("tiny", "me")]
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_some_token"}
    written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files == written and "README.md" in written and "card/bits.png" in written
    assert b'from_pretrained("me/tiny")' in hub.files["README.md"]


def test_a_push_that_is_refused_is_one_line(folder, hub):
    hub.refuse = True
    with pytest.raises(BitsFusionError, match=r"me/tiny: could not be pushed: .*403") as error:
        push_to_hub(folder, "me/tiny", endpoint=hub.url)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="wanted the name of a repository"):
        push_to_hub(folder, "not a//name", endpoint=hub.url)
    with pytest.raises(BitsFusionError, match="could not be pushed"):
        push_to_hub(folder, "me/tiny", endpoint="http://127.0.0.1:9")
