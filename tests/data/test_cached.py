"""Sources become latents and token ids once; what was killed continues; what is bad is counted."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import warnings
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file

from bitsfusion.data import caching
from bitsfusion.data.batches import encode_images
from bitsfusion.data.cached import cached_data
from bitsfusion.data.image_folder import ImageFolder
from bitsfusion.data.latent_cache import claimed
from bitsfusion.data.pixels import decode_image, to_model_range
from bitsfusion.data.records import Record
from bitsfusion.diffusion.conditioning.clip import ClipConditioner
from bitsfusion.errors import InputError


class Stream:
    """A source of unknown length in parts of given sizes, which counts what it was asked for."""

    identity, records, title = "stream", None, "stream"

    def __init__(self, image_bytes, sizes):
        self._image, self._sizes, self.parts, self.loaded = image_bytes, sizes, len(sizes), []

    def read(self, part, start):
        for index in range(start, self._sizes[part]):
            name = f"{part}/{index}"

            def load(name=name):
                self.loaded.append(name)
                part, index = map(int, name.split("/"))
                return self._image(part * 100 + index), "abc"[part % 3]

            yield Record(name, load)


def chunk_files(cache):
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*.safetensors"))


def test_samples_are_the_images_latents_and_captions(write_folder, open_data, vae, tokenizer, tmp_path):
    folder = write_folder(tmp_path / "images", 7)
    data = open_data(ImageFolder(folder), dtype="float32")
    assert data.count == 7
    batch = data.samples([6, 0, 3, 0])
    assert batch.names == ("6.png", "0.png", "3.png", "0.png")
    pixels = torch.stack([decode_image((folder / name).read_bytes(), 32)[0] for name in batch.names])
    assert torch.allclose(batch.latents, encode_images(vae, to_model_range(pixels)), atol=1e-5)
    assert batch.latents.dtype == torch.float32 and batch.prompts["input_ids"].dtype == torch.int64
    assert [row[:3].tolist() for row in batch.prompts["input_ids"]] == [tokenizer(text).input_ids for text in "gada"]


def test_float16_keeps_three_digits(write_folder, open_data, tmp_path):
    source = ImageFolder(write_folder(tmp_path / "images", 4))
    exact, half = (open_data(source, dtype=dtype).samples(range(4)).latents for dtype in ("float32", "float16"))
    assert half.dtype == torch.float32 and not torch.equal(exact, half)
    assert torch.allclose(exact, half, rtol=2**-10, atol=1e-6)


def test_a_batch_is_a_function_of_its_arguments(write_folder, open_data, tmp_path):
    data = open_data(ImageFolder(write_folder(tmp_path / "images", 7)))
    for step in range(4):
        data.batch(step, 0, 1, 3)
    fresh = open_data(ImageFolder(tmp_path / "images"))
    whole, again = data.batch(2, 0, 1, 4), fresh.batch(2, 0, 1, 4)
    assert whole.names == again.names and torch.equal(whole.latents, again.latents)
    halves = [fresh.batch(2, rank, 2, 2) for rank in range(2)]
    assert torch.equal(whole.latents, torch.cat([half.latents for half in halves]))
    assert torch.equal(whole.prompts["input_ids"], torch.cat([half.prompts["input_ids"] for half in halves]))
    epoch = [name for step in range(7) for name in data.batch(step, 0, 1, 1).names]
    assert sorted(epoch) == [f"{index}.png" for index in range(7)]


def test_what_is_cached_is_not_read_again(image_bytes, open_data, tmp_path):
    source = Stream(image_bytes, [4, 0, 6])
    seen = []
    first = open_data(source, progress=lambda done, total: seen.append((done, total)))
    assert first.count == 10 and sorted(source.loaded) == sorted(
        f"{p}/{i}" for p, n in ((0, 4), (2, 6)) for i in range(n)
    )
    names = [path.split("/")[1] for path in chunk_files(tmp_path / "cache")]
    assert names == [f"part-{p:05d}-{c:04d}.safetensors" for p, c in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1))]
    again = open_data(Stream(None, [4, 0, 6]))
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.samples(range(10)).latents, first.samples(range(10)).latents)


def test_max_samples_reads_no_more_than_it_needs(image_bytes, open_data):
    source = Stream(image_bytes, [4, 50, 50])
    few = open_data(source, max_samples=6)
    assert few.count == 6 and few.samples(range(6)).names == ("0/0", "0/1", "0/2", "0/3", "1/0", "1/1")
    assert len(source.loaded) <= 4 + 3
    more = open_data(source, max_samples=9)
    assert more.count == 9 and more.fingerprint != few.fingerprint
    assert len(source.loaded) == len(set(source.loaded)), "nothing twice"
    assert open_data(source, max_samples=6).fingerprint == few.fingerprint, "a larger cache does not show"


@pytest.mark.parametrize("change", ["vae", "decoder", "tokenizer", "resolution", "dtype", "caption", "seed"])
def test_the_cache_follows_what_it_was_made_from(change, write_folder, open_data, vae, tokenizer, tmp_path):
    folder, cache = write_folder(tmp_path / "images", 3), tmp_path / "cache"
    first = open_data(ImageFolder(folder))
    other, words, options = deepcopy(vae), deepcopy(tokenizer), {}
    if change == "vae":
        other.encoder.conv_in.bias.data += 1
    elif change == "decoder":
        other.decoder.conv_in.bias.data += 1
    elif change == "tokenizer":
        words.model_max_length = 11
    elif change == "caption":
        listing = folder / "metadata.jsonl"
        listing.write_text(listing.read_text().replace('"text": "a"', '"text": "z"'))
    else:
        options = {"resolution": {"resolution": 16}, "dtype": {"dtype": "float32"}, "seed": {"seed": 1}}[change]
    second = cached_data(
        ImageFolder(folder), other, ClipConditioner({"": words}, {}), cache, **{"resolution": 32, **options}
    )
    folders = len({path.split("/")[0] for path in chunk_files(cache)})
    assert folders == (1 if change in ("decoder", "seed") else 2)
    assert (second.fingerprint == first.fingerprint) == (change == "decoder")


def test_the_fingerprint_is_of_the_content_wherever_it_lies(write_folder, open_data, tmp_path):
    one, two = (open_data(ImageFolder(write_folder(tmp_path / name, 5))).fingerprint for name in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "3.png").write_bytes((tmp_path / "two" / "4.png").read_bytes())
    assert open_data(ImageFolder(tmp_path / "two")).fingerprint != one


def spoil(folder):
    """Six bad samples of the twelve: (file, reason)."""
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:900])
    (folder / "3.png").unlink()
    listing = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    listing[5]["text"], listing[7]["text"] = "  ", 7
    del listing[8]["text"]
    (folder / "9.png").write_bytes(b"no image")
    listing[10]["text"] = "a " * 30
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, listing)))
    return ["1.png", "3.png", "5.png", "7.png", "8.png", "9.png"]


def test_bad_samples_are_left_out_and_counted(write_folder, open_data, tmp_path):
    folder = write_folder(tmp_path / "images", 12)
    bad = spoil(folder)
    for _ in range(2):  # made, then found
        with pytest.warns(UserWarning, match="left out|cut to") as caught:
            data = open_data(ImageFolder(folder), max_bad_samples=6)
        left_out, cut = sorted((str(one.message) for one in caught), reverse=True, key=lambda text: "left out" in text)
        assert "6 of 12 samples left out: 1.png: image cannot be read: " in left_out and "truncated" in left_out
        assert (
            "; 3.png: image cannot be read: No such file or directory; 5.png: caption is empty; and 3 more" in left_out
        )
        assert "1 of 12 captions cut to what the text encoder takes" in cut
        good = [f"{index}.png" for index in range(12) if f"{index}.png" not in bad]
        assert data.count == 6 and list(data.samples(range(6)).names) == good


def test_warnings_of_the_library_that_decodes_stay_there(write_folder, open_data, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 600)  # a warning for each image, an error above 1200 pixels
    filters = list(warnings.filters)
    for name in ("one", "two", "three"):
        with warnings.catch_warnings(record=True) as caught:
            open_data(ImageFolder(write_folder(tmp_path / name, 9)))
        assert not caught
    assert warnings.filters == filters


@pytest.mark.parametrize("limit", [0, 0.25, 0.499, 2, 5])
def test_too_many_bad_samples_stop_it(limit, write_folder, open_data, tmp_path):
    folder = write_folder(tmp_path / "images", 12)
    spoil(folder)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"samples cannot be used, more than max_bad_samples {limit:g}") as caught:
            open_data(ImageFolder(folder), max_bad_samples=limit)
        assert "1.png: image cannot be read" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="left out|cut to"):
        assert open_data(ImageFolder(folder), max_bad_samples=0.5).count == 6


def test_no_usable_sample_and_a_bad_resolution_are_refused(write_folder, image_bytes, open_data, tmp_path):
    folder = write_folder(tmp_path / "images", 1)
    with pytest.raises(InputError, match="wanted a multiple of 4 pixels"):
        open_data(ImageFolder(folder), resolution=30)
    (folder / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no usable sample, 0\.png: image cannot be read"):
        open_data(ImageFolder(folder), max_bad_samples=1)
    with pytest.raises(InputError, match="stream: no usable sample"):
        open_data(Stream(image_bytes, [0]))


def test_latents_that_are_not_finite_are_bad_samples(write_folder, open_data, vae, tmp_path, monkeypatch):
    encode = caching.Encoder.latents

    def overflow(encoder, pixels):
        latents = encode(encoder, pixels)
        latents[1::3] = torch.inf
        return latents

    monkeypatch.setattr(caching.Encoder, "latents", overflow)
    with pytest.warns(UserWarning, match=r"2 of 6 samples left out: 1\.png: its latents are not finite; 4\.png"):
        data = open_data(ImageFolder(write_folder(tmp_path / "images", 6)), max_bad_samples=2)
    assert data.count == 4 and data.samples(range(4)).latents.isfinite().all()


def test_a_damaged_chunk_is_made_again(write_folder, open_data, tmp_path):
    source = ImageFolder(write_folder(tmp_path / "images", 7))
    first = open_data(source)
    for file, content in zip(sorted((tmp_path / "cache").rglob("*.safetensors"))[:2], (b"", b"x" * 100), strict=True):
        file.write_bytes(content)
    again = open_data(source)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.samples(range(7)).latents, first.samples(range(7)).latents)


@pytest.fixture
def filling(vae, conditioner, tmp_path, monkeypatch):
    """Starts a process that fills a cache from tmp_path/images, with a pause at every encoding."""
    fork, processes = multiprocessing.get_context("fork"), []
    encode = caching.Encoder.latents

    def start(cache, seconds):
        def slowly(encoder, pixels):
            time.sleep(seconds)
            return encode(encoder, pixels)

        def work():
            monkeypatch.setattr(caching.Encoder, "latents", slowly)
            cached_data(ImageFolder(tmp_path / "images"), vae, conditioner, cache, resolution=32)

        processes.append(fork.Process(target=work))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


def contents(cache):
    return {name: load_file(cache / name) for name in chunk_files(cache)}


def same(one, other):
    keys = one.keys() == other.keys()
    return keys and all(torch.equal(one[name][key], other[name][key]) for name in one for key in one[name])


def finish(*processes):
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.01)


def test_a_killed_filling_goes_on_and_ends_the_same(write_folder, open_data, filling, tmp_path):
    source = ImageFolder(write_folder(tmp_path / "images", 14))
    open_data(source)
    cache = tmp_path / "killed"
    process = filling(cache, 0.15)
    wait_for(lambda: len(chunk_files(cache)) >= 2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    left = {name: (cache / name).stat().st_mtime_ns for name in chunk_files(cache)}
    assert 2 <= len(left) < 5
    folder = next(path for path in cache.iterdir())
    (folder / f".part-{len(left):05d}-0000.safetensors.abcdefgh.partial").write_bytes(b"half a chunk")
    finish(filling(cache, 0))
    assert {name: (cache / name).stat().st_mtime_ns for name in left} == left, "what was done stays"
    assert same(contents(cache), contents(tmp_path / "cache"))
    assert not list(cache.rglob("*.partial"))


def test_processes_share_the_work_and_take_over_from_the_dead(write_folder, open_data, filling, tmp_path):
    source = ImageFolder(write_folder(tmp_path / "images", 24))
    open_data(source)
    cache = tmp_path / "shared"
    processes = [filling(cache, 0.2) for _ in range(3)]
    wait_for(lambda: len(chunk_files(cache)) >= 2)
    os.kill(processes[0].pid, signal.SIGKILL)
    finish(*processes[1:])
    assert same(contents(cache), contents(tmp_path / "cache"))


def test_a_claim_ends_with_its_process(tmp_path):
    def work(ready):
        with claimed(tmp_path, 4, wait=False) as granted:
            ready.send(granted)
            time.sleep(60)

    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    other = fork.Process(target=work, args=(there,))
    other.start()
    try:
        assert here.recv()
        with claimed(tmp_path, 4, wait=False) as granted:
            assert not granted
        with claimed(tmp_path, 5, wait=False) as granted:
            assert granted
        other.kill()
        with claimed(tmp_path, 4, wait=True) as granted:
            assert granted
    finally:
        other.kill()
        other.join()
