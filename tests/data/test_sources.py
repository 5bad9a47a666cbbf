"""Image folders, datasets and shards give the same records, whole or from any place on."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile

import pytest
from PIL import Image

from bitsfusion.data.hf_dataset import HfDataset
from bitsfusion.data.image_folder import ImageFolder
from bitsfusion.data.records import BadSampleError
from bitsfusion.data.tar_shards import TarShards
from bitsfusion.errors import InputError

COUNT = 8


@pytest.fixture(autouse=True, scope="module")
def own_copies(tmp_path_factory):
    """Datasets makes its local copies here."""
    import datasets.config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        yield


@pytest.fixture
def rows(image_bytes):
    return [(image_bytes(index), f"caption {index}") for index in range(COUNT)]


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_shards(folder, rows, per_shard=5):
    for number, start in enumerate(range(0, len(rows), per_shard)):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            for index, (image, text) in enumerate(rows[start : start + per_shard], start):
                add(tar, f"s/{index}.PNG" if index % 2 else f"s/{index}.png", image)
                add(tar, f"s/{index}.json", b"{}")
                add(tar, f"s/{index}.{('txt', 'text', 'caption')[index % 3]}", text.encode())
    return folder / "{000..001}.tar"


def dataset_of(rows):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"picture": ImageFeature(), "title": Value("string"), "more": Value("int32")})
    columns = {"picture": [{"bytes": image, "path": None} for image, _ in rows]}
    return Dataset.from_dict({**columns, "title": [text for _, text in rows], "more": [0] * len(rows)}, features)


COLUMNS = {"image_column": "picture", "caption_column": "title"}


def open_source(kind, folder, rows):
    if kind == "imagefolder":
        lines = []
        for index, (image, text) in enumerate(rows):
            (folder / f"{index}.png").write_bytes(image)
            lines.append(json.dumps({"file_name": f"{index}.png", "text": text}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        return ImageFolder(folder)
    if kind == "shards":
        return TarShards(str(write_shards(folder, rows)))
    dataset, streaming = dataset_of(rows), kind.endswith("streamed")
    if kind.startswith("saved"):
        dataset.save_to_disk(folder / "saved")
        return HfDataset(str(folder / "saved"), streaming=streaming, **COLUMNS)
    if kind.startswith("file"):
        dataset.to_parquet(folder / "data.parquet")
        return HfDataset(str(folder / "data.parquet"), streaming=streaming, **COLUMNS)
    (folder / "data").mkdir()
    for index in range(2):
        name = f"train-0000{index}-of-00002.parquet"
        dataset.shard(2, index, contiguous=True).to_parquet(folder / "data" / name)
    return HfDataset(str(folder), streaming=streaming, **COLUMNS)


KINDS = ["imagefolder", "shards", "saved", "saved streamed", "file", "file streamed", "parquet", "parquet streamed"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_records_in_order(kind, tmp_path, rows):
    source = open_source(kind, tmp_path, rows)
    records = [record for part in range(source.parts) for record in source.read(part, 0)]
    got = [record.load() for record in records]
    assert [image for image, _ in got] == [image for image, _ in rows]
    assert [text.decode() if isinstance(text, bytes) else text for _, text in got] == [text for _, text in rows]
    assert len({record.name for record in records}) == COUNT
    assert source.records in (None, COUNT)
    assert source.parts > 1 or kind in ("saved streamed", "file streamed")
    again = open_source(kind, tmp_path, rows) if kind == "shards" else source
    assert len(again.identity) == 64


@pytest.mark.parametrize("kind", KINDS)
def test_reading_starts_at_any_place_of_a_part(kind, tmp_path, rows):
    source = open_source(kind, tmp_path, rows)
    for part in range(source.parts):
        names = [record.name for record in source.read(part, 0)]
        for start in range(len(names) + 1):
            assert [record.name for record in source.read(part, start)] == names[start:]


@pytest.mark.parametrize("name", ["folder", "shards", "parquet", "saved"])
def test_the_identity_follows_the_data(name, tmp_path, rows):
    def identity():
        if name == "folder":
            return ImageFolder(tmp_path).identity
        if name == "shards":
            return TarShards(str(tmp_path / "{000..001}.tar")).identity
        if name == "parquet":
            return HfDataset(str(tmp_path / "data.parquet"), **COLUMNS).identity
        return HfDataset(str(tmp_path / "saved"), **COLUMNS).identity

    kind, changed = {
        "folder": ("imagefolder", "3.png"),
        "shards": ("shards", "001.tar"),
        "parquet": ("file", "data.parquet"),
        "saved": ("saved", "saved/state.json"),
    }[name]
    before = open_source(kind, tmp_path, rows).identity
    assert identity() == before
    status = (tmp_path / changed).stat()
    os.utime(tmp_path / changed, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert identity() != before


def test_images_may_be_raw_bytes_or_paths_and_captions_lists(tmp_path, rows):
    import pyarrow
    import pyarrow.parquet

    columns = {"image": [image for image, _ in rows], "text": [[text, "another"] for _, text in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "raw.parquet")
    assert [record.load() for record in HfDataset(str(tmp_path / "raw.parquet")).read(0, 0)][1][0] == rows[1][0]

    (tmp_path / "0.png").write_bytes(rows[0][0])
    paths = [{"bytes": None, "path": str(tmp_path / name)} for name in ("0.png", "gone.png")] + [None]
    pyarrow.parquet.write_table(pyarrow.table({"image": paths, "text": ["a", "b", "c"]}), tmp_path / "paths.parquet")
    records = list(HfDataset(str(tmp_path / "paths.parquet")).read(0, 0))
    assert records[0].load() == (rows[0][0], "a")
    for record, message in zip(records[1:], ("cannot be read", "no image"), strict=True):
        with pytest.raises(BadSampleError, match=message):
            record.load()


def test_a_dataset_that_does_not_fit_is_one_line(tmp_path, rows):
    dataset_of(rows).to_parquet(tmp_path / "data.parquet")
    name = str(tmp_path / "data.parquet")
    with pytest.raises(InputError, match="got columns picture, title, more, wanted one named 'image'"):
        HfDataset(name)
    with pytest.raises(InputError, match="wanted one named 'text'"):
        HfDataset(name, image_column="picture", streaming=True)
    for streaming in (False, True):
        with pytest.raises(InputError, match=r"\(test\): could not be loaded as a dataset: .*train"):
            HfDataset(name, split="test", streaming=streaming, **COLUMNS)
    for missing in ("nobody/nothing", str(tmp_path / "none")):
        with pytest.raises(InputError, match="could not be loaded as a dataset"):
            HfDataset(missing)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(InputError, match=r"got a \.md file, wanted one of"):
        HfDataset(str(tmp_path / "notes.md"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(InputError, match="could not be loaded as a dataset"):
        HfDataset(str(tmp_path / "broken.parquet"))


def test_shards_keep_what_the_environment_would_split(tmp_path, rows, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    source = open_source("shards", tmp_path, rows)
    assert len([record for part in range(source.parts) for record in source.read(part, 0)]) == COUNT


def test_a_sample_without_image_or_caption_is_bad_or_has_none(tmp_path, rows):
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        add(tar, "1.txt", b"alone")
        add(tar, "2.jpg", rows[0][0])
        add(tar, "3.cls", b"7")
    one, two = TarShards(str(tmp_path / "000.tar")).read(0, 0)
    with pytest.raises(BadSampleError, match="no image, wanted one of jpg"):
        one.load()
    assert two.load() == (rows[0][0], None) and two.name == "000.tar:2"


def test_broken_and_missing_shards_are_refused(tmp_path, rows):
    with pytest.raises(InputError, match=r"000\.tar: no such file"):
        TarShards(str(tmp_path / "{000..001}.tar"))
    with pytest.raises(InputError, match="got none"):
        TarShards(())
    source = open_source("shards", tmp_path, rows)
    whole = (tmp_path / "000.tar").read_bytes()
    for content in (whole[: len(whole) // 2], b"no tar" * 1000):
        (tmp_path / "000.tar").write_bytes(content)
        with pytest.raises(InputError, match=r"000\.tar: wanted a whole tar file"):
            list(source.read(0, 0))
    double = tmp_path / "double.tar"
    with tarfile.open(double, "w") as tar:
        add(tar, "1.jpg", b"x")
        add(tar, "1.jpg", b"x")
    with pytest.raises(InputError, match="duplicate"):
        list(TarShards(str(double)).read(0, 0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metadata\.jsonl, line 1: wanted lines of JSON"),
        ('["a"]', r"metadata\.jsonl, line 1: wanted .*file_name"),
        ('{"text": "a"}', r"metadata\.jsonl, line 1: wanted .*file_name"),
        ('{"file_name": "../x.png", "text": ""}', "points outside the folder"),
        ('{"file_name": "x\\u0000.png", "text": ""}', "points outside the folder"),
        ("", "lists no images"),
    ],
)
def test_a_wrong_listing_is_refused(tmp_path, line, message):
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        ImageFolder(tmp_path)


def test_a_folder_without_a_listing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metadata\.jsonl: no such file"):
        ImageFolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="wanted lines of JSON"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(("library", "source"), [("datasets", HfDataset), ("webdataset", TarShards)])
def test_a_missing_library_is_named(library, source, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=f"wanted `pip install {library}`"):
        source(str(tmp_path / "x.tar"))


def test_images_open_as_the_pictures_they_are(tmp_path, rows):
    image, _ = next(iter(open_source("parquet", tmp_path, rows).read(0, 0))).load()
    assert Image.open(io.BytesIO(image)).size == (32, 32)
