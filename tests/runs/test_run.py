"""The whole method on the embedded model, with few steps; and the same run killed again and again."""

import json
import random
import subprocess
import time

import pytest
import yaml

from bitsfusion.artifact.verify import verify_folder
from bitsfusion.cli.main import main
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.run import Run
from bitsfusion.vote.database import Record, Vote
from bitsfusion.vote.prompts import Topic
from bitsfusion.vote.results import vote_results

from .. import forked

CONFIG = {
    "data": {"kind": "world", "pool": 24},
    "analysis": {"method": "jacobian", "samples": 2},
    "stage1": {
        "stage": 1,
        "train_batch_size": 2,
        "learning_rate": 1e-4,
        "max_train_steps": 6,
        "checkpointing_steps": 2,
    },
    "stage2": {"stage": 2, "train_batch_size": 2, "learning_rate": 1e-5, "max_train_steps": 4, "ema_decay": 0.9},
    "control": True,
    "serve": {"samplers": {"pndm": 3}},
    "evaluation": {"per_task": 1, "steps": 3, "guidance": 2.0, "probe_samples": 4},
}
TIMES = {"seconds", "training_seconds"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    Run(RunConfig.model_validate(CONFIG), folder).execute()
    return folder


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_the_summary(done):
    summary = read_json(done / "summary.json")
    assert [rung["name"] for rung in summary["rungs"]] == ["full_precision", "init", "stage1", "stage2", "control"]
    assert 1.5 < summary["bits"]["average"] <= 1.99
    assert summary["bits"]["bytes_on_disk"] == (done / "packed/unet/diffusion_pytorch_model.safetensors").stat().st_size
    assert summary["bits"]["bytes_fp16"] > 6 * summary["bits"]["bytes_on_disk"]
    rungs = {rung["name"]: rung for rung in summary["rungs"]}
    assert rungs["full_precision"]["noise_error"] == 0
    assert rungs["stage1"]["noise_error"] > 0
    assert rungs["full_precision"]["image_mse"] is None
    for rung in rungs.values():
        assert set(rung["geneval"]["tasks"]) == set(read_json(done / "summary.json")["rungs"][0]["geneval"]["tasks"])
        assert rung["images"] == 6


def test_the_packed_folder_is_the_trained_model(done):
    verify_folder(done / "packed")
    stage2 = next(rung for rung in read_json(done / "summary.json")["rungs"] if rung["name"] == "stage2")
    assert stage2["reload_difference"] <= 1


def test_the_report_stands_alone(done):
    page = (done / "report" / "index.html").read_text()
    assert "Stage II" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_nothing_is_done_twice(done):
    records = {path.name: path.stat().st_mtime_ns for path in (done / "steps").glob("*.json")}
    Run(RunConfig.model_validate(CONFIG), done).execute()
    assert {path.name: path.stat().st_mtime_ns for path in (done / "steps").glob("*.json")} == records


def test_votes_put_beside_a_run_are_shown(done, tmp_path):
    """The page is made again, nothing else; scores of another model are refused."""
    folder = tmp_path / "run"
    subprocess.run(["cp", "-rp", done, folder], check=True)
    votes = (Vote("anna", 0, "b", "a", 900, ""),)
    results = vote_results(Record(("full", "packed"), ("a cat",), (Topic("Animals", "Basic"),), votes))
    (folder / "votes.json").write_text(results.model_dump_json())
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "steps").glob("*.json")}
    Run(RunConfig.model_validate(CONFIG), folder).execute()
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "steps").glob("*.json")}
    assert {name for name in after if after[name] != before[name]} == {"report.json"}
    page = (folder / "report" / "index.html").read_text()
    assert "Human preference" in page and "1 vote of 1 voter." in page
    (folder / "scores.json").write_text(json.dumps({"model": {"bits": {"average": 8.0}}, "results": []}))
    with pytest.raises(InputError, match=r"scores\.json"):
        Run(RunConfig.model_validate(CONFIG), folder).execute()


def test_a_changed_setting_repeats_only_what_follows_from_it(done, tmp_path):
    subprocess.run(["cp", "-rp", done, tmp_path / "run"], check=True)
    config = RunConfig.model_validate({**CONFIG, "stage2": {**CONFIG["stage2"], "learning_rate": 2e-5}})
    before = {path.name: path.stat().st_mtime_ns for path in (done / "steps").glob("*.json")}
    Run(config, tmp_path / "run").execute(until="pack")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "steps").glob("*.json")}
    assert {name for name in after if after[name] != before[name]} == {"stage2-0.json", "control-0.json", "pack.json"}


def test_killed_at_any_point_it_ends_the_same(done, tmp_path):
    """SIGKILL at random moments; the same command continues and ends with the same bits and scores."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    command = ["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    rng = random.Random(5)
    for _ in range(2):
        (process,) = forked.start(main, command)
        steps = tmp_path / "run" / "steps"
        deadline = time.monotonic() + 120
        while process.is_alive() and not steps.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.join(rng.uniform(0.5, 4))
        process.kill()
        process.join()
    assert forked.run(main, command) == 0
    assert without_times(read_json(tmp_path / "run" / "summary.json")) == without_times(
        read_json(done / "summary.json")
    )
    weights = "packed/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (done / weights).read_bytes()
    leftovers = [path for path in (tmp_path / "run").rglob(".*") if path.suffix in (".partial", ".old")]
    assert json.dumps([str(path) for path in leftovers]) == "[]"
