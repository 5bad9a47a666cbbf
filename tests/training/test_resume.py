from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitsfusion.errors import InputError
from bitsfusion.training.checkpoint import checkpoints, load_student
from bitsfusion.training.log import read_log
from bitsfusion.training.loop import train

from .. import forked
from ..tiny.unet import build_unet
from .killed_run import CONFIG, killed_run
from .small_run import RandomData, build_student, run_parts


def run(out_dir, teacher=None, **changes):
    teacher = teacher or build_unet()
    parts = run_parts()
    parts.update({key: changes.pop(key) for key in ("data", "progress") if key in changes})
    config = CONFIG.model_copy(update=changes)
    return train(build_student(teacher), teacher, config=config, out_dir=out_dir, **parts)


def launch(out_dir: Path, changes: dict[str, object], where: str = "never", processes: int = 1) -> int:
    """The exit code of such a run in a process of its own, or in several over gloo."""
    return forked.run(killed_run, out_dir, where, changes, processes=processes)


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def without_seconds(out_dir: Path) -> list[dict[str, float]]:
    lines = read_log(out_dir / "log.jsonl")
    for line in lines:
        del line["seconds"]
    return lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nobody killed."""
    out_dir = tmp_path_factory.mktemp("whole")
    run(out_dir)
    return out_dir


@pytest.mark.parametrize(
    ("where", "resumes_at"), [("step 5", 3), ("saving", 3), pytest.param("step 9", 6, marks=pytest.mark.slow)]
)
def test_a_killed_run_ends_with_the_same_bits(whole, tmp_path, where, resumes_at):
    assert launch(tmp_path, {}, where) == -signal.SIGKILL
    assert not (tmp_path / "student.json").exists()

    result = run(tmp_path)

    assert result.resumed_from == resumes_at
    assert same_weights(tmp_path, whole)
    assert without_seconds(tmp_path) == without_seconds(whole)
    assert not list(tmp_path.glob(".*")), "leftovers of the killed run"


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    """Accumulation, averages and frequent checkpoints; killed at random times, wherever that is, until it ends."""
    changes = {"total_batch_size": 8, "train_batch_size": 2, "checkpointing_steps": 1, "max_train_steps": 10}
    run(tmp_path / "whole", **changes)
    rng, kills = random.Random(time.time_ns()), 0
    while not (tmp_path / "killed" / "student.json").exists():
        (process,) = forked.start(killed_run, tmp_path / "killed", "never", changes)
        before = len(checkpoints(tmp_path / "killed")) and checkpoints(tmp_path / "killed")[-1].name
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:  # work has begun anew: any moment from here on
            if (now := checkpoints(tmp_path / "killed")) and now[-1].name != before:
                time.sleep(rng.uniform(0, 2.5))
                break
            time.sleep(0.01)
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills >= 2
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    assert without_seconds(tmp_path / "killed") == without_seconds(tmp_path / "whole")


def test_log_and_checkpoints_of_a_whole_run(whole):
    assert [line["step"] for line in read_log(whole / "log.jsonl")] == [2, 4, 6, 8, 9]
    assert [path.name for path in checkpoints(whole)] == ["checkpoint-3", "checkpoint-6"]
    assert not [path for path in whole.rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]
    rates = [line["learning_rate"] for line in read_log(whole / "log.jsonl")]
    assert rates[0] == pytest.approx(5e-4)  # half way through the warm-up
    assert rates[1] > rates[2] > rates[3] > rates[4]


def test_every_interruption_resumes_exactly(whole, tmp_path):
    class Stop(Exception):
        pass

    def stop_at(wanted):
        def progress(step, total, metrics):
            if step == wanted:
                raise Stop

        return progress

    for step in (1, 2, 5, 8):
        with pytest.raises(Stop):
            run(tmp_path, checkpointing_steps=1, checkpoints_total_limit=1, progress=stop_at(step + 1))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-8"]
    run(tmp_path, checkpointing_steps=1)
    assert same_weights(tmp_path, whole)
    assert without_seconds(tmp_path) == without_seconds(whole)


def test_a_checkpoint_holds_the_averaged_student(whole):
    path = whole / "checkpoint-6"
    averaged, trained = load_file(path / "ema.safetensors"), load_file(path / "student.safetensors")
    student = load_student(path, build_unet())
    assert averaged.keys() == trained.keys()
    assert all(torch.equal(value, averaged[name]) for name, value in student.state_dict().items())
    assert not torch.equal(averaged["conv_in.weight"], trained["conv_in.weight"])


def test_resumes_from_a_named_checkpoint(whole, tmp_path):
    result = run(tmp_path, resume_from_checkpoint=str(whole / "checkpoint-3"))
    assert result.resumed_from == 3
    assert same_weights(tmp_path, whole)


class TestRefuses:
    def test_another_config(self, whole):
        with pytest.raises(InputError, match=r"config\.learning_rate 0\.001 is now 0\.002, config\.max_train_steps 9"):
            run(whole, learning_rate=2e-3, max_train_steps=10)

    def test_other_data(self, whole):
        data = RandomData()
        data.fingerprint = "other"
        with pytest.raises(InputError, match="data 'random' is now 'other'"):
            run(whole, data=data)

    def test_other_bits(self, whole):
        teacher = build_unet()
        with pytest.raises(InputError, match=r"bits\..* 2 is now 3"):
            train(build_student(teacher, 3), teacher, config=CONFIG, out_dir=whole, **run_parts())

    def test_a_fresh_start_in_a_used_folder(self, whole):
        with pytest.raises(InputError, match="resume_from_checkpoint is null"):
            run(whole, resume_from_checkpoint=None)

    def test_a_path_that_is_no_checkpoint(self, tmp_path):
        with pytest.raises(InputError, match="got nowhere, wanted latest, null or a checkpoint folder"):
            run(tmp_path, resume_from_checkpoint="nowhere")

    def test_a_folder_without_a_student(self, tmp_path):
        with pytest.raises(InputError, match=r"student\.json: no such file"):
            load_student(tmp_path)

    def test_a_damaged_checkpoint(self, whole, tmp_path):
        (tmp_path / "student.json").write_text((whole / "student.json").read_text())
        (tmp_path / "student.safetensors").write_bytes((whole / "student.safetensors").read_bytes()[:1000])
        with pytest.raises(InputError, match=r"student\.safetensors: wanted a safetensors file"):
            load_student(tmp_path)


def test_changes_that_do_not_matter_may_be_made(whole, tmp_path):
    for path in whole.glob("checkpoint-6/*"):
        (tmp_path / "checkpoint-6").mkdir(exist_ok=True)
        (tmp_path / "checkpoint-6" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "log.jsonl").write_text((whole / "log.jsonl").read_text() + '{"step": 9, "lo')
    result = run(tmp_path, checkpointing_steps=2, checkpoints_total_limit=None)
    assert result.resumed_from == 6
    assert without_seconds(tmp_path) == without_seconds(whole)
    assert json.loads((tmp_path / "student.json").read_text())["step"] == 9


# Another order of summation moves a weight over the edge between two levels now and then, after which two runs part;
# small steps and few of them keep that away.
GENTLE = {"learning_rate": 1e-4, "max_train_steps": 6, "logging_steps": 1, "total_batch_size": 8}


def agree(ours: Path, theirs: Path) -> None:
    for one, other in zip(without_seconds(ours), without_seconds(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_two_processes_give_the_losses_of_one(tmp_path):
    """The same 8 samples a step: two micro-batches of one process, one in each of two processes."""
    run(tmp_path / "one", **GENTLE)
    assert launch(tmp_path / "two", GENTLE, processes=2) == 0
    assert json.loads((tmp_path / "two" / "student.json").read_text())["processes"] == 2
    agree(tmp_path / "two", tmp_path / "one")
    ours, theirs = (load_file(tmp_path / name / "student.safetensors") for name in ("two", "one"))
    start = build_student(build_unet()).state_dict()
    for name, value in theirs.items():
        moved = (value - start[name]).norm()
        assert (ours[name] - value).norm() <= 0.02 * moved + 1e-6, name


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """Two processes' checkpoint, gone on with in one: the losses are those of the run of one process."""
    run(tmp_path / "one", **GENTLE)
    assert launch(tmp_path / "two", GENTLE, processes=2, where="step 4") != 0
    assert run(tmp_path / "two", **GENTLE).resumed_from == 3
    agree(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_shards_over_two_processes_give_the_losses_of_one(tmp_path):
    """FSDP2 over gloo: parts of weights, moments and averages; killed, and gone on with in one process."""
    run(tmp_path / "one", **GENTLE)
    sharded = {**GENTLE, "shard": True, "gradient_checkpointing": True}
    assert launch(tmp_path / "whole", sharded, processes=2) == 0
    agree(tmp_path / "whole", tmp_path / "one")
    assert launch(tmp_path / "killed", sharded, processes=2, where="step 5") != 0
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    assert launch(tmp_path / "killed", sharded, processes=2) == 0
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    assert run(tmp_path / "alone", **GENTLE).resumed_from == 3
    agree(tmp_path / "alone", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_resume_exactly_and_log_once(tmp_path):
    def launched(name: str, where: str) -> int:
        return launch(tmp_path / name, {}, processes=2, where=where)

    assert launched("whole", "never") == 0
    assert launched("killed", "step 5") != 0
    assert [path.name for path in checkpoints(tmp_path / "killed")] == ["checkpoint-3"]
    assert launched("killed", "never") == 0
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    assert without_seconds(tmp_path / "killed") == without_seconds(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "student.json").read_text())["processes"] == 2
    with pytest.raises(InputError, match=r"samples_per_step 8 is now 4"):
        run(tmp_path / "whole")


def test_a_run_of_the_first_schema_version_resumes(whole, tmp_path):
    """Version 1 called the architecture "unet"."""
    checkpoint = tmp_path / "checkpoint-6"
    checkpoint.mkdir()
    for path in whole.glob("checkpoint-6/*"):
        (checkpoint / path.name).write_bytes(path.read_bytes())
    info = json.loads((checkpoint / "student.json").read_text())
    info["unet"] = info.pop("model")
    (checkpoint / "student.json").write_text(json.dumps(info | {"schema_version": 1}))
    (tmp_path / "log.jsonl").write_text((whole / "log.jsonl").read_text())
    assert load_student(checkpoint).config == load_student(whole).config
    assert run(tmp_path).resumed_from == 6
    assert without_seconds(tmp_path) == without_seconds(whole)
    assert json.loads((tmp_path / "student.json").read_text())["schema_version"] == 2
