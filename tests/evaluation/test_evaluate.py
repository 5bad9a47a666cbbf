"""`bitsfusion evaluate`: images drawn and gone on with, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitsfusion.diffusion.samplers import SamplerSteps
from bitsfusion.embedded import SCORER_FOLDER
from bitsfusion.embedded.quick import QUICK
from bitsfusion.errors import InputError
from bitsfusion.evaluation.drawing import Sampling, draw_into
from bitsfusion.evaluation.estimates import Verdict, difference, estimate, verdicts
from bitsfusion.evaluation.evaluate import evaluate
from bitsfusion.evaluation.measures import (
    ImageMeasure,
    Judgement,
    Metric,
    clip_measure,
    fid_measure,
    pair_measure,
    world_geneval_measure,
)
from bitsfusion.evaluation.pictures import read_picture
from bitsfusion.evaluation.prompts import file_prompts, world_prompts
from bitsfusion.evaluation.setting import Evaluation
from bitsfusion.evaluation.values import judgement_journal
from bitsfusion.io.work_folder import folder_lock
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import EMBEDDED, load_pipeline
from bitsfusion.progress import ProgressSink, silent
from bitsfusion.runs.packing import init_pipeline

from ..command import refusal, run

STEPS = 2


class Recorder(ProgressSink):
    def __init__(self, said):
        self.said = said

    def update(self, step, done, total, note=""):
        self.said.append((step, done, total))


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The embedded model at two bits, for DDIM with two steps alone."""
    folder = tmp_path_factory.mktemp("model") / "packed"
    init_pipeline(EMBEDDED, folder, recipe="uniform:2", samplers=[SamplerSteps("ddim", STEPS)])
    return folder


@pytest.fixture
def evaluation(packed) -> Evaluation:
    prompts = world_prompts(QUICK, "test", 1, 7)
    return Evaluation(str(packed), EMBEDDED, prompts, "test", 1, "ddim", STEPS, (3.5, 7.5), 4)


@pytest.fixture
def measures(evaluation):
    return [
        clip_measure(ClipScorer.from_pretrained(SCORER_FOLDER), evaluation.prompts, "scorer"),
        pair_measure(Metric.MSE),
        pair_measure(Metric.SSIM),
        world_geneval_measure(evaluation.prompts),
    ]


def test_scores_say_what_they_are_of(evaluation, measures, packed, tmp_path):
    said = []
    scores = evaluate(evaluation, measures, tmp_path, Recorder(said))
    assert scores == json.loads((tmp_path / "scores.json").read_text())
    assert [(result["metric"], result["guidance"]) for result in scores["results"]] == [
        (measure.metric.value, guidance) for guidance in (3.5, 7.5) for measure in measures
    ]
    assert 2 < scores["model"]["bits"]["average"] < 2.4  # log2(5) a weight; first, last and time features on top
    assert scores["against"]["bits"] is None
    assert scores["model"]["sha256"] != scores["against"]["sha256"]
    assert scores["settings"]["seeds"] == {"first": 7, "count": 6}
    assert scores["settings"]["prompts_sha256"] == evaluation.prompts.sha256
    assert scores["packages"]["torchmetrics"]
    assert ("against, guidance 3.5", 6, 6) in said

    clip, error, similar, geneval = scores["results"][:4]
    drawn = [np.stack([read_picture(tmp_path / side / "guidance-3.5" / f"{i:05d}.png") for i in range(6)])
             for side in ("model", "against")]  # fmt: skip
    ours, theirs = (value.astype(np.float64) / 255 for value in drawn)
    assert error["to_original"]["mean"] == pytest.approx(np.square(ours - theirs).mean())
    assert 0 < similar["to_original"]["mean"] < 1
    assert geneval["model"]["mean"] == pytest.approx(np.mean(list(geneval["model"]["tasks"].values())))
    assert clip["difference"]["mean"] == pytest.approx(clip["model"]["mean"] - clip["against"]["mean"])

    pipeline = load_pipeline(str(packed))  # all at once: as it was drawn in batches of four
    again = generate_images(
        pipeline, evaluation.prompts.texts, evaluation.prompts.seeds, steps=STEPS, guidance=3.5, sampler="ddim"
    )
    assert np.abs(again.astype(int) - drawn[0].astype(int)).max() <= 1

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    more = evaluate(replace(evaluation, guidance=(3.5,)), measures, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
    assert more["results"] == scores["results"][:4]


def test_a_stopped_drawing_goes_on_with_the_same_images(packed, tmp_path):
    prompts, sampling = world_prompts(QUICK, "test", 1, 3), Sampling("ddim", STEPS, 5.0, 2)

    def into(name: str, sampling: Sampling, progress=silent):
        return draw_into(
            tmp_path / name, lambda: load_pipeline(str(packed)), prompts, sampling, "hash", progress=progress
        )

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        into("a", sampling, stop)
    assert len(list((tmp_path / "a").glob("*.png"))) == 2
    assert not (tmp_path / "a" / "metadata.jsonl").exists()
    done = into("a", sampling)
    whole = into("b", sampling)
    assert all(done.paths[i].read_bytes() == whole.paths[i].read_bytes() for i in range(6))
    lines = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert [(line["text"], line["seed"]) for line in lines] == list(zip(prompts.texts, prompts.seeds, strict=True))
    with pytest.raises(InputError, match="holds images of another guidance"):
        into("a", replace(sampling, guidance=2.0))


def test_a_model_against_itself_differs_in_nothing(tmp_path):
    prompts = world_prompts(QUICK, "test", 1, 0)
    same = Evaluation(EMBEDDED, EMBEDDED, prompts, "test", 1, "ddim", STEPS, (4.0,), 6)
    first = evaluate(same, [clip_measure(ClipScorer.from_pretrained(SCORER_FOLDER), prompts, "scorer")], tmp_path)[
        "results"
    ][0]
    assert first["difference"] == {"mean": 0, "low": 0, "high": 0, "p": 1, "verdict": "no difference shown"}
    fid = fid_measure(f"clip:{SCORER_FOLDER}", tmp_path / "against", "cpu")
    (result,) = evaluate(same, [fid], tmp_path)["results"]
    assert result["model"]["value"] == pytest.approx(0, abs=1e-4)
    assert fid.settings["reference_images"] == 6


def test_tasks_count_the_same_whatever_their_number_of_images():
    groups = ["single_object"] * 4 + ["counting"]
    measure = ImageMeasure(Metric.GENEVAL, lambda images, where: [], groups=groups)
    values = np.array([1.0, 1, 1, 0, 0])
    found = estimate(values, groups=groups)
    assert found.mean == pytest.approx((0.75 + 0) / 2)
    assert 0 <= found.low < found.mean < found.high <= 0.5  # the one image of its task can be no other
    assert measure.by_group(values) == {"single_object": 0.75, "counting": 0.0}


@given(
    values=st.lists(st.floats(-1, 1), min_size=12, max_size=20).filter(lambda values: len(values) % 2 == 0),
    shift=st.floats(-2, 2),
)
def test_a_verdict_needs_an_interval_without_zero(values, shift):
    found = difference([value + shift for value in values], [0.0] * len(values), images_per_prompt=2)
    (verdict,) = verdicts([found])
    assert found.low <= found.mean <= found.high or found.low == pytest.approx(found.high)
    if found.low <= 0 <= found.high:
        assert verdict is Verdict.NONE
    elif verdict is not Verdict.NONE:
        assert verdict is (Verdict.BETTER if found.low > 0 else Verdict.WORSE)


def test_images_of_one_prompt_are_no_prompts_of_their_own():
    """Four equal images a prompt tell no more than one does."""
    one = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert estimate(np.repeat(one, 4), 4) == estimate(one)


def test_prompts_of_tifas_form(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps([{"id": "a", "caption": "one cat"}, {"id": "b", "caption": "two dogs"}]))
    prompts = file_prompts(path, 5).repeated(2)
    assert prompts.texts == ("one cat", "one cat", "two dogs", "two dogs")
    assert prompts.seeds == (5, 6, 7, 8)
    path.write_text('[{"id": 1}]')
    with pytest.raises(InputError, match=r"wanted a list of .*caption"):
        file_prompts(path, 5)


def test_the_command(packed, tmp_path, capsys):
    common = ["--per-task", 1, "--sampler", "ddim", "--quiet", "--out", tmp_path / "out"]
    assert run("evaluate", packed, "--against", "embedded", "--steps", STEPS, *common) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    shown = capsys.readouterr().out
    assert [result["metric"] for result in scores["results"]] == ["clip", "mse", "psnr", "ssim", "geneval"]
    for result in scores["results"]:
        (line,) = [line for line in shown.splitlines() if f" {result['metric']} " in line]
        change = result.get("difference") or result["to_original"]
        assert f"{change['mean']:.3g} ({change['low']:.3g} to {change['high']:.3g})" in line
        assert change.get("verdict", "") in line
    assert f"6 images a set; every interval, over prompts: {tmp_path / 'out' / 'scores.json'}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedded", "--metrics", "ssim"], "got ssim without --against"),
        (["embedded", "--metrics", "beauty"], "metrics: got beauty, wanted clip"),
        (["embedded", "--metrics", "fid"], "fid: got no --fid-reference"),
        (["embedded", "--guidance", "high"], "guidance: got 'high'"),
        (["embedded", "--dtype", "int8"], "dtype: got int8"),
        (["PACKED", "--against", "embedded", "--per-task", "1", "--steps", "3"], "ddim 2"),
        (["PACKED", "--per-task", "1"], "prompts: got none, wanted --prompts FILE"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, packed, tmp_path, capsys):
    arguments = [packed if argument == "PACKED" else argument for argument in arguments]
    assert message in refusal(capsys, "evaluate", *arguments, "--out", tmp_path / "out", "--quiet")


def test_an_out_that_another_process_works_in(evaluation, measures, tmp_path):
    with folder_lock(tmp_path, tmp_path / ".lock"), pytest.raises(InputError, match="another process is working in"):
        evaluate(evaluation, measures, tmp_path)


@pytest.mark.parametrize("line", ["nonsense", '{"value": 1}', "[]", '{"value": "x", "record": 1}', '{"value": 1, "re'])
def test_what_is_no_judgement_ends_what_goes_on(line, tmp_path):
    partial = judgement_journal(tmp_path / "values.partial.jsonl", "one")
    assert partial.open() == []
    first = [Judgement(0.5, {"found": 1}), Judgement(1.0, None)]
    partial.append(first)
    with open(partial.path, "a") as file:
        file.write(line + "\n" + '{"value": 2.0, "record": null}\n')
    assert partial.open() == first
    partial.append(first[:1])
    assert partial.open() == [*first, first[0]]
    assert judgement_journal(partial.path, "another").open() == []


@pytest.mark.parametrize("content", ["[]", "values", "short"])
def test_values_that_do_not_fit_are_measured_again(content, evaluation, measures, tmp_path):
    few = replace(evaluation, guidance=(3.5,))
    scores = evaluate(few, measures[:1], tmp_path)
    path = tmp_path / "values" / "clip-model-guidance-3.5.json"
    stored = json.loads(path.read_text())
    broken = {"[]": [], "values": stored | {"values": None}, "short": stored | {"values": stored["values"][1:]}}
    path.write_text(json.dumps(broken[content]))
    assert evaluate(few, measures[:1], tmp_path)["results"] == scores["results"]
    assert json.loads(path.read_text()) == stored
