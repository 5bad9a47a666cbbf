"""A config's data section becomes training data, whatever holds the images."""

from __future__ import annotations

import io
import json
import random
import tarfile

import pytest
import torch
from PIL import Image

from bitsfusion.embedded import PIPELINE_FOLDER
from bitsfusion.embedded.quick import QUICK
from bitsfusion.errors import InputError
from bitsfusion.io.schema import parse
from bitsfusion.io.work_folder import cache_folder
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.progress import ProgressSink
from bitsfusion.runs.config import RunConfig, named_data
from bitsfusion.runs.sources import training_data


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(str(PIPELINE_FOLDER))


@pytest.fixture(scope="module")
def samples():
    rng, made = random.Random(0), []
    for _ in range(6):
        prompt, buffer = QUICK.sample_prompt(rng), io.BytesIO()
        Image.fromarray(QUICK.draw(QUICK.sample_scene(prompt, rng))).save(buffer, "PNG")
        made.append((buffer.getvalue(), prompt.text))
    return made


def write(kind, folder, samples):
    """Writes the samples and gives the data section that names them."""
    if kind == "imagefolder":
        for index, (image, _) in enumerate(samples):
            (folder / f"{index}.png").write_bytes(image)
        lines = [json.dumps({"file_name": f"{index}.png", "text": text}) for index, (_, text) in enumerate(samples)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        return {"train_data_dir": str(folder)}
    if kind == "webdataset":
        with tarfile.open(folder / "0.tar", "w") as tar:
            for index, (image, text) in enumerate(samples):
                for name, content in ((f"{index}.png", image), (f"{index}.txt", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return {"train_shards_path_or_url": str(folder / "{0..0}.tar")}
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [image for image, _ in samples], "text": [text for _, text in samples]})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    return {"dataset_name": str(folder / "train.parquet"), "streaming": True}


class Recorder(ProgressSink):
    def __init__(self):
        self.said = []

    def update(self, step, done, total, note=""):
        self.said.append((step, done, total))

    def finish(self, step, seconds):
        self.said.append((step, "finished"))


def test_all_sources_give_the_same_samples(pipeline, samples, tmp_path):
    found = []
    for kind in ("imagefolder", "webdataset", "hf_dataset"):
        (tmp_path / kind).mkdir()
        section = {"kind": kind, "resolution": 64, "latents_cache_dir": str(tmp_path / "cache")}
        section.update(write(kind, tmp_path / kind, samples))
        config = parse(RunConfig, {"data": section}, "test")
        assert parse(RunConfig, json.loads(config.model_dump_json()), "saved") == config
        progress = Recorder()
        found.append(training_data(config.data, pipeline, "train", progress))
        assert progress.said[-1] == ("data", "finished")
        again = Recorder()
        assert training_data(config.data, pipeline, "train", again).fingerprint == found[-1].fingerprint
        assert not again.said, "nothing to encode"
    first = found[0].batch(1, 0, 1, 4)
    for other in (data.batch(1, 0, 1, 4) for data in found[1:]):
        assert torch.equal(first.latents, other.latents) and torch.equal(
            first.prompts["input_ids"], other.prompts["input_ids"]
        )


@pytest.mark.parametrize("kind", ["imagefolder", "webdataset", "hf_dataset"])
def test_commands_tell_the_kinds_apart(kind, pipeline, samples, tmp_path):
    """By what --data names: a folder, or the files in it."""
    names = set(write(kind, tmp_path, samples).values()) - {True} | {str(tmp_path)}
    for name in names:
        source = named_data(name, resolution=64, max_samples=3, latents_cache_dir=tmp_path / "cache")
        assert source.kind == kind and source.max_samples == 3
        if not (kind == "hf_dataset" and name == str(tmp_path)):  # the library makes a copy of a folder first
            assert training_data(source, pipeline, "train").batch(0, 0, 1, 2).latents.shape[0] == 2


def test_a_source_that_is_not_there_is_one_line(pipeline, tmp_path):
    for section in (
        {"kind": "imagefolder", "train_data_dir": str(tmp_path)},
        {"kind": "webdataset", "train_shards_path_or_url": [str(tmp_path / "0.tar")]},
        {"kind": "hf_dataset", "dataset_name": str(tmp_path / "0.parquet")},
    ):
        config = parse(RunConfig, {"data": section}, "test")
        with pytest.raises(InputError, match=str(tmp_path)):
            training_data(config.data, pipeline, "train")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "tar"}, "data: Input tag 'tar'"),
        ({"kind": "webdataset"}, r"train_shards_path_or_url: Field required"),
        ({"kind": "hf_dataset", "dataset_name": "a/b", "max_bad_samples": -1}, "max_bad_samples"),
        ({"kind": "imagefolder", "train_data_dir": "x", "pool": 3}, "pool: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_section_is_one_line(section, message):
    with pytest.raises(InputError, match=message):
        parse(RunConfig, {"data": section}, "run.yaml")


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("latents") == tmp_path / "bitsfusion" / "latents"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("latents") == tmp_path / ".cache" / "bitsfusion" / "latents"


def test_where_samples_are_kept_decides_nothing():
    section = {"kind": "imagefolder", "train_data_dir": "x"}
    one, moved, other = (
        parse(RunConfig, {"data": {**section, **more}}, "test").data.deciding()
        for more in ({}, {"latents_cache_dir": "y", "max_bad_samples": 7}, {"seed": 1})
    )
    assert one == moved != other
