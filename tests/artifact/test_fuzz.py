"""Thousands of broken folders: each is refused in one line, or holds what it held before. Nothing hangs or swells.

Every case is a function of (seed, kind, number). More of them, or others:

    BITSFUSION_FUZZ=100000 BITSFUSION_FUZZ_SEED=7 pytest -m "slow or not slow" -s tests/artifact/test_fuzz.py
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging
from transformers import CLIPTextModel

import bitsfusion  # noqa: F401  registers with diffusers
from bitsfusion.artifact.container import StoredTensor
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.payload import decode_layer
from bitsfusion.artifact.reader import PackedFolder, open_folder
from bitsfusion.artifact.schema import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from bitsfusion.artifact.verify import check_tensors, verify_folder
from bitsfusion.errors import ArtifactError, BitsFusionError, InputError

from . import mutations

GOLDEN = Path(__file__).parent / "golden" / "v1"
LOADERS: dict[str, Any] = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL}
NAMES = ("cached", "layers_8bit", *LOADERS)
SEED = int(os.environ.get("BITSFUSION_FUZZ_SEED", "20240"))
CASES = int(os.environ.get("BITSFUSION_FUZZ", "0"))
SECONDS, PATIENCE = 5.0, 60.0
HEADROOM = 1 << 30  # of address space: threads reserve much of it
GROWTH = 96 << 20  # of resident memory, over a whole run

# (kind, case) that once went wrong, as printed by a failure.
REGRESSIONS = [
    ("shards", "x:84"),  # a tensor's name with a line feed in an index: an error of two lines
    ("shards", "x:234"),
]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """diffusers tells at length what it does not expect."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every golden folder and `shards`: whole folders to be broken and mended again."""
    path = tmp_path_factory.mktemp("fuzz")
    for name in NAMES:
        shutil.copytree(GOLDEN / name, path / name)
    UNet2DConditionModel.from_pretrained(GOLDEN / "cached").save_pretrained(path / "shards", max_shard_size="15KB")
    assert (path / "shards" / INDEX_FILE).is_file()
    verify_folder(path / "shards")
    return path


@contextmanager
def bounds() -> Iterator[None]:
    """A limit of address space around, and of seconds, so that a hang or a greedy allocation is an error."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (size + HEADROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < GROWTH, f"resident memory grew by {grown >> 20} MiB"


@contextmanager
def time_limit() -> Iterator[None]:
    """A limit of work, and of waiting on a busy machine."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds of work, or {PATIENCE} in all")

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE))
    before = [signal.signal(bell, ring) for bell, _, _ in clocks]
    for _, timer, seconds in clocks:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (bell, timer, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(bell, handler)


def content(folder: PackedFolder) -> dict[str, Any]:
    """All that decides about weights."""
    held: dict[str, Any] = {"config": folder.config.model_dump(exclude={"provenance", "config_sha256"})}
    with folder.tensors() as tensors:
        for name in tensors.names:
            layer = name.removesuffix(".packed")
            held[name] = (tensors.buffer(layer) if layer != name else tensors.tensor(name)).tobytes()
    return held


@cache
def whole(name: str) -> tuple[PackedFolder, dict[str, StoredTensor], dict[str, Any]]:
    folder = open_folder(GOLDEN / name)
    return folder, folder.expected(), content(folder)


def rewritten(path: Path, data: bytes) -> None:
    """In place of a file that others may still have mapped."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def payload(work: Path, rng: random.Random) -> str:
    """One layer's tensor, decoded alone."""
    folder, _, held = whole(rng.choice(NAMES))
    name, other = rng.choice(list(folder.config.layers)), rng.choice(list(folder.config.layers))
    with folder.tensors() as tensors:
        stored, second = (tensors.tensor(f"{each}.packed").tobytes() for each in (name, other))
    entry = folder.config.layers[name]
    made = mutations.payload(stored, entry, second, rng)
    buffer = decode_layer(name, np.frombuffer(made, dtype=np.uint8), entry)
    assert buffer.tobytes() == held[f"{name}.packed"], "another weight"
    return "same"


def weight_file(work: Path, rng: random.Random, change: Callable[[bytes, random.Random], bytes]) -> str:
    name = rng.choice(NAMES)
    folder, expected, held = whole(name)
    file = folder.architecture.weights
    rewritten(work / name / file, change((GOLDEN / name / file).read_bytes(), rng))
    broken = PackedFolder(work / name, folder.model_config, folder.config)
    try:
        with broken.tensors() as tensors:
            check_tensors(folder.config, expected, tensors)
        assert content(broken) == held, "another weight"
    finally:
        rewritten(work / name / file, (GOLDEN / name / file).read_bytes())
    return "same"


def any_bytes(work: Path, rng: random.Random) -> str:
    """Bytes of the weight file, wherever they are."""
    return weight_file(work, rng, mutations.mangled)


def header(work: Path, rng: random.Random) -> str:
    """Fields of the safetensors header."""
    return weight_file(work, rng, mutations.header)


def config(work: Path, rng: random.Random) -> str:
    """Fields of config.json, the model's own included."""
    name = rng.choice(NAMES)
    within = rng.choice([(), ("quantization_config",), ("quantization_config",)])
    made, sealed = mutations.config((GOLDEN / name / CONFIG_FILE).read_bytes(), rng, within)
    rewritten(work / name / CONFIG_FILE, made)
    try:
        rng.choice([verify_folder, inspect_folder])(work / name)
        same = content(open_folder(work / name)) == whole(name)[2]
    finally:
        rewritten(work / name / CONFIG_FILE, (GOLDEN / name / CONFIG_FILE).read_bytes())
    # Who makes the hash fit has written another packed folder, and a good one.
    assert same or sealed, "another config"
    return "same" if same else "sealed"


def shards(work: Path, rng: random.Random) -> str:
    """The index of shards, one of its files, or which files there are."""
    folder = work / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "shards", folder)
    files = sorted(folder.glob("*.safetensors"))
    kind = rng.randrange(8)
    if kind <= 4:
        rewritten(folder / INDEX_FILE, mutations.index((folder / INDEX_FILE).read_bytes(), rng))
    elif kind == 5:
        rng.choice([*files, folder / INDEX_FILE, folder / CONFIG_FILE]).unlink()
    elif kind == 6:
        rewritten(rng.choice(files), rng.choice(files).read_bytes())
    else:
        shutil.copy(rng.choice([*files, folder / CONFIG_FILE]), folder / rng.choice([WEIGHTS_FILE, "model.bin", "x"]))
    rng.choice([verify_folder, inspect_folder])(folder)
    assert content(open_folder(folder)) == whole("cached")[2], "another weight"
    return "same"


def loading(work: Path, rng: random.Random) -> str:
    """The same through diffusers and transformers, for what this package reads: the packed config and the tensors."""
    name = rng.choice(NAMES)
    sealed = False
    made_by, file = LOADERS.get(name, UNet2DConditionModel), whole(name)[0].architecture.weights
    kind = rng.randrange(4)
    if kind == 0:
        made, sealed = mutations.config((GOLDEN / name / CONFIG_FILE).read_bytes(), rng, ("quantization_config",))
        rewritten(work / name / CONFIG_FILE, made)
    else:
        change = mutations.header if kind == 1 else mutations.mangled
        data = (GOLDEN / name / file).read_bytes()
        if kind == 2:
            change, data = in_one_layer(whole(name)[0]), data
        rewritten(work / name / file, change(data, rng))
    try:
        unet = made_by.from_pretrained(work / name)
        good = made_by.from_pretrained(GOLDEN / name).state_dict()
        held = unet.state_dict()
        same = held.keys() == good.keys() and all(torch.equal(held[key], good[key]) for key in good)
        same &= unet.hf_quantizer.content.time_features == whole(name)[0].config.time_features
        assert same or sealed, "another weight"
        return "same" if same else "sealed"
    finally:
        for each in (file, CONFIG_FILE):
            rewritten(work / name / each, (GOLDEN / name / each).read_bytes())


def in_one_layer(folder: PackedFolder) -> Callable[[bytes, random.Random], bytes]:
    """A change of one payload within the file, the header made to fit."""

    def change(data: bytes, rng: random.Random) -> bytes:
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        notes = entries.pop("__metadata__")
        parts = {name: data[8 + length :][slice(*entry["data_offsets"])] for name, entry in entries.items()}
        name, other = rng.choice(list(folder.config.layers)), rng.choice(list(folder.config.layers))
        made = mutations.payload(parts[f"{name}.packed"], folder.config.layers[name], parts[f"{other}.packed"], rng)
        parts[f"{name}.packed"], entries[f"{name}.packed"]["shape"] = made, [len(made)]
        end = 0
        for key, part in parts.items():
            entries[key]["data_offsets"] = [end, end + len(part)]
            end += len(part)
        text = json.dumps({"__metadata__": notes, **entries}).encode()
        return len(text).to_bytes(8, "little") + text + b"".join(parts.values())

    return change


KINDS: dict[str, tuple[Callable[[Path, random.Random], str], int]] = {
    "payload": (payload, 60),  # with their shares of 100
    "any_bytes": (any_bytes, 10),
    "header": (header, 16),
    "config": (config, 10),
    "shards": (shards, 4),
}


def run(kind: str, case: str, work: Path, refusals: tuple[type[Exception], ...]) -> str:
    """What became of one case: refused, same or sealed.

    Raises:
        AssertionError: anything else; says how to repeat it.
    """
    change = loading if kind == "loading" else KINDS[kind][0]
    try:
        with time_limit():
            return change(work, random.Random(f"{kind}:{case}"))
    except (ArtifactError, InputError) as error:
        text = str(error)
        assert text.isprintable() and 10 < len(text) < 1000, f"({kind!r}, {case!r}): not one line: {text!r}"
        return "refused"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = "bitsfusion" in frames[-1].filename.split("site-packages")[-1]
        greedy = isinstance(error, (MemoryError, RecursionError, TimeoutError, AssertionError))
        if isinstance(error, refusals) and not ours and not greedy and not isinstance(error, BitsFusionError):
            return "refused by diffusers"
        raise AssertionError(f"({kind!r}, {case!r}): {type(error).__name__}: {error}") from error


def run_all(cases: dict[str, int], work: Path, refusals: tuple[type[Exception], ...] = ()) -> Counter[str]:
    counts: Counter[str] = Counter()
    with bounds():
        for kind, number in cases.items():
            for case in range(number):
                counts[f"{kind}: {run(kind, f'{SEED}:{case}', work, refusals)}"] += 1
    print(f"\nseed {SEED}, {sum(counts.values())} cases: {dict(sorted(counts.items()))}")  # noqa: T201
    return counts


def shares(total: int) -> dict[str, int]:
    return {kind: total * share // 100 for kind, (_, share) in KINDS.items()}


@pytest.mark.parametrize(("kind", "case"), REGRESSIONS)
def test_what_once_went_wrong(kind: str, case: str, work: Path) -> None:
    assert run(kind, case, work, (Exception,)) in ("refused", "same", "sealed", "refused by diffusers")


def test_thousands_of_broken_folders(work: Path) -> None:
    counts = run_all(shares(CASES or 2_000), work)
    assert sum(counts[f"{kind}: refused"] for kind in KINDS) > sum(counts.values()) / 2
    assert counts["payload: same"] and counts["config: same"] and counts["shards: same"]


@pytest.mark.slow
def test_ten_thousand_broken_folders(work: Path) -> None:
    run_all(shares(CASES or 10_000), work)


def test_broken_folders_through_diffusers(work: Path) -> None:
    # What diffusers itself reads first, it refuses in its own way.
    counts = run_all({"loading": max(60, CASES // 100)}, work, (Exception,))
    assert counts["loading: refused"] > 20
