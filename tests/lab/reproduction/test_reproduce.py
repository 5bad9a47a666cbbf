"""`bitsfusion reproduce` with two steps and six images: what it writes, and that nothing is done twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_file
from bitsfusion.io.texts import read_json
from bitsfusion.sensitivity.table import SensitivityTable, write_table
from bitsfusion_lab.reproduction.frame import Frame
from bitsfusion_lab.reproduction.ladder import BALANCE, BASE
from bitsfusion_lab.reproduction.methods import EFFICIENT_DM, LSQ
from bitsfusion_lab.reproduction.settings import Settings
from bitsfusion_lab.reproduction.table import Row, Table, make_table
from bitsfusion_lab.rivals.stored import read_model

SETTINGS = Settings(seeds=(0,), steps=2, train_batch_size=8, pool=64, per_task=1, sampler_steps=2, probe_samples=16)
SHORT = Table(4, "two arms", (Row("base", BASE, 0.2797), Row("+ balance", BALANCE, 0.3054)), 0.3156, cumulative=True)
COMMAND = (sys.executable, "-m", "bitsfusion.cli.main", "reproduce")
TINY = ("--steps", "2", "--per-task", "1", "--seeds", "0", "--sampler-steps", "2", "--quiet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce") / "out"
    frame = Frame(SETTINGS, out)
    content = make_table(frame, SHORT)
    yield frame, content
    frame.close()


def test_the_table(made):
    frame, content = made
    assert read_json(frame.path / "table4.json") == content
    assert [row["label"] for row in content["rows"]] == ["full precision", "base", "+ balance"]
    whole, base, balance = content["rows"]
    assert whole["noise_error"]["mean"] == 0
    assert base["noise_error"]["mean"] > balance["noise_error"]["mean"] > 0
    assert (base["against_row_above"], balance["against_row_above"] is None) == (None, False)
    text = (frame.path / "table4.md").read_text()
    assert len(re.findall(r"^\| ", text, re.MULTILINE)) == 5
    with Image.open(frame.path / "table4.png") as picture:
        assert min(picture.size) > 100


def test_bytes_are_those_of_files(made):
    frame, content = made
    for row in content["rows"][1:]:
        file = frame.path / "files" / row["name"] / "seed-0" / "diffusion_pytorch_model.safetensors"
        assert row["bytes"] == file.stat().st_size
        assert row["bits_per_weight"] == pytest.approx(8 * row["bytes"] / frame.weights)


def test_the_two_bits_of_the_base(made):
    """Two bits in all layers, eight in conv_in and conv_out."""
    frame, content = made
    ends = sum(frame.model.get_submodule(name).weight.numel() for name in ("conv_in", "conv_out"))
    assert content["rows"][1]["bits"] == pytest.approx(2 + 6 * ends / frame.weights)


def test_nothing_is_done_twice(made):
    frame, content = made
    records = {path: path.stat().st_mtime_ns for path in (frame.path / "steps").glob("*.json")}
    assert make_table(frame, SHORT) == content
    assert {path: path.stat().st_mtime_ns for path in (frame.path / "steps").glob("*.json")} == records


@pytest.mark.parametrize("arm", [LSQ, EFFICIENT_DM], ids=["lsq", "efficient_dm"])
def test_a_trained_rival_is_its_file(made, arm):
    """What images are drawn with and what the file's bytes stand for are the same function."""
    frame, _ = made
    arm.make(frame, 0)
    _, size = arm.size(frame, 0)
    path = frame.path / f"files/{arm.name}/seed-0/diffusion_pytorch_model.safetensors"
    assert size == path.stat().st_size
    student, read = arm.load(frame, 0), read_model(path, json.loads(frame.model.to_json_string()))
    inputs = torch.randn(2, 12, 4, 4), torch.tensor([10, 900]), torch.randn(2, 16, 96)
    with torch.no_grad():
        torch.testing.assert_close(student(*inputs).sample, read(*inputs).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "values", "message"),
    [("0" * 64, 0, "another model"), (None, 7, "time features")],
    ids=["model", "sampler"],
)
def test_a_table_that_is_not_for_this_is_refused(made, tmp_path, source, values, message):
    frame, _ = made
    own = frame.workspace.source_sha256 if source is None else source
    fields = {"layers": {"a": 1}, "removed": {}, "first_last": {}, "settings": {}, "rows": []}
    table = SensitivityTable(model="x", source_sha256=own, method="x", feature_values=values, **fields)
    write_table(tmp_path / "other.json", table)
    settings = SETTINGS.model_copy(update={"sensitivity": tmp_path / "other.json"})
    with pytest.raises(InputError, match=message):
        Frame(settings, tmp_path / "out")
    Frame(SETTINGS, tmp_path / "out").close()  # it is not left locked


def test_more_seeds_keep_what_is_there(made):
    """Seeds and further tables only add: an arm does not know of them."""
    frame, _ = made
    frame.close()
    before = {path.name: path.stat().st_mtime_ns for path in (frame.path / "steps").glob("*.json")}
    more = Frame(SETTINGS.model_copy(update={"seeds": (0, 1)}), frame.path)
    content = make_table(more, Table(4, "one arm", (Row("base", BASE, 0.2797),), 0.3156))
    more.close()
    after = {path.name: path.stat().st_mtime_ns for path in (frame.path / "steps").glob("*.json")}
    assert {name: after[name] for name in before} == before
    assert len(content["rows"][1]["geneval"]["seeds"]) == 2
    assert any(name.endswith("seed-1-cfg-7.5.json") for name in after)


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path):
    """SIGKILL in the middle; the same command ends with the same table as an undisturbed one but for the times."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out):
        command = [*COMMAND, "--table", "7", *TINY, "--out", out]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment)

    out, done = tmp_path / "out", "train-*.json"
    process = start(out)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(list(out.glob(f"steps/{done}"))) < 2:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = {path: sha256_file(path) for path in out.glob("steps/*.json") if ".begun." not in path.name}
    assert first
    assert start(out).wait(timeout=300) == 0
    assert all(sha256_file(path) == value for path, value in first.items())
    rows = read_json(out / "table7.json")["rows"]
    assert [row["label"] for row in rows[1:]] == ["Beta(1.5, 1)", "Beta(2, 1)", "Beta(3, 1)", "uniform"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 4, 5, 6, 7])
def test_each_table_from_its_command(number, tmp_path):
    command = [*COMMAND, "--table", str(number), *TINY, "--out", tmp_path, "--json"]
    ended = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    (content,) = json.loads(ended.stdout)
    assert content == read_json(tmp_path / f"table{number}.json")
    for row in content["rows"][1:]:
        assert "missing" in row or (row["bytes"] > 0 and row["geneval"]["mean"] is not None)
    assert (tmp_path / f"table{number}.png").stat().st_size > 0
