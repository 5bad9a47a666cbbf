from __future__ import annotations

import dataclasses
import html
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bitsfusion.embedded.quick import QUICK
from bitsfusion.embedded.world import TASKS
from bitsfusion.evaluation.estimates import Difference, Verdict
from bitsfusion.metrics.geneval import GenEvalResult, GenEvalSummary, geneval_summary
from bitsfusion.report.data import Curve, LayerRow, Pictures, ReportData, Rung, SeedScores, Sizes
from bitsfusion.report.numbers import duration, number, size
from bitsfusion.report.page import write_report
from bitsfusion.report.scores import ScoreTable
from bitsfusion.vote.database import Record, Vote
from bitsfusion.vote.prompts import Topic
from bitsfusion.vote.results import vote_results

VOID = {"meta", "img", "br", "link"}


def summary(correct: tuple[int, ...]) -> GenEvalSummary:
    results = [GenEvalResult(task, i < n) for task, n in zip(TASKS, correct, strict=True) for i in range(100)]
    return geneval_summary(results, resamples=400)


def example() -> ReportData:
    """A report with everything in it, of the embedded model's kind and size."""
    rng, draws = np.random.default_rng(0), random.Random(0)
    rungs = (
        Rung("full_precision", "Full precision", 32, "the model as it was trained", summary((100, 91, 84, 99, 41, 88)),
             31.62, None, None, 0.0812),
        Rung("init", "Quantized, untrained", 1.9902, "scales set, no training", summary((82, 40, 36, 75, 12, 22)),
             27.31, 0.0412, 0.0153, 0.0971, 2.1),
        Rung("stage1", "After Stage I", 1.9902, "trained to predict the original’s noise",
             summary((100, 88, 82, 98, 39, 86)), 31.44, 0.0121, 0.00083, 0.0821, 131.0),
        Rung("stage2", "After Stage II", 1.9902, "trained on to predict the true noise",
             summary((100, 90, 81, 99, 40, 87)), 31.58, 0.0142, 0.0017, 0.0816, 74.0,
             Difference(-0.01, -0.03, 0.01, 0.3, 600, 3), Verdict.NONE),
        Rung("control", "Control", 32, "full precision, trained on for the same steps",
             summary((100, 92, 85, 99, 42, 89)), 31.65, 0.0133, 0.0011, 0.0809, 71.0),
    )  # fmt: skip
    prompts = QUICK.prompt_set("test", 4)
    scenes = [QUICK.draw(QUICK.sample_scene(prompt, draws)) for prompt in prompts]
    noise = {"full_precision": 0, "init": 22, "stage1": 5, "stage2": 4, "control": 3}
    images = {
        name: np.stack([np.clip(s + rng.normal(0, sd, s.shape), 0, 255).astype(np.uint8) for s in scenes])
        for name, sd in noise.items()
    }
    chance = {"full_precision": 0.9, "init": 0.4, "stage1": 0.85, "stage2": 0.85, "control": 0.9}
    passed = {name: [bool(x) for x in rng.random(len(prompts)) < p] for name, p in chance.items()}
    kinds = ("ResBlock conv", "attention to_q", "attention to_k", "attention to_v", "attention out", "feed-forward")
    layers = [
        LayerRow(
            f"down_blocks.{i // 9}.attentions.0.transformer_blocks.0.layer{i}",
            "first and last" if i in (0, 89) else "shortcut" if i % 17 == 5 else kinds[i % 6],
            int(rng.choice([4096, 8192, 36864, 73728, 147456])),
            8 if i in (0, 89) else int(rng.choice([1, 1, 1, 2, 2, 3, 4])),
            float(10 ** rng.uniform(-6, -2)),
            float(rng.uniform(1.2, 2.5)),
        )
        for i in range(90)
    ]
    steps = np.arange(19, 1000, 50)
    step_errors = [
        Curve(r.label, steps, s * np.exp(steps / 160)) for r, s in zip(rungs[1:4], (4e-3, 3e-4, 5e-4), strict=True)
    ]
    losses = [
        Curve("Stage I", np.arange(1, 401), 0.02 * np.exp(-np.arange(400) / 80) + 0.001 + rng.normal(0, 1e-4, 400)),
        Curve("Stage II", np.arange(1, 201), 0.08 + rng.normal(0, 3e-3, 200)),
    ]
    categories = {"weights": 880_000, "cached time features": 179_000, "biases and norms": 61_000, "scales": 52_000}
    return ReportData(
        title="A diffusion model at 1.99 bits a weight",
        model="embedded: 64×64 drawn world, 4.25 M parameters",
        rungs=rungs,
        final="stage2",
        sizes=Sizes(8_512_000, 1_172_000, 4_180_000, 1_160_000, 1_131_000, 1_208_000, categories),
        pictures=Pictures([prompt.text for prompt in prompts], images, passed),
        layers=layers,
        step_errors=step_errors,
        losses=losses,
        settings={"Sampler": "PNDM, 50 steps", "Guidance": 7.5, "Seeds": "1024 + prompt number", "Images": 600},
        command="bitsfusion demo --out runs/demo",
    )


class Page(HTMLParser):
    """Checks that tags close in order; keeps what tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.alts: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        values = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.alts.append(values["alt"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def data() -> ReportData:
    return example()


@pytest.fixture(scope="module")
def text(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_report(data, tmp_path_factory.mktemp("run") / "report")
    assert path.name == "index.html"
    return path.read_text("utf-8")


def test_page_is_whole_and_holds_everything(text: str, data: ReportData) -> None:
    page = Page(text)
    assert page.open == []
    assert page.tags["h1"] == 1
    assert data.pictures is not None
    for rung in data.rungs:
        assert rung.label in page.text
        assert rung.note in page.text
        for prompt in data.pictures.prompts:
            assert any(alt.startswith(f"{rung.label}: {prompt}") for alt in page.alts)
    for layer in data.layers:
        assert layer.name in page.text
    assert all(alt for alt in page.alts)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(set(ids)) == len(ids) and set(re.findall(r"url\(#(\w+)\)", text)) <= set(ids)
    assert page.tags["svg"] == 3  # bits of the layers, error over the time step, loss
    assert "step" in page.text and "Stage II" in page.text


def test_page_needs_nothing_beside_it(text: str) -> None:
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert all(link.startswith("data:image/") for link in Page(text).links)
    assert len(text.encode()) < 3_000_000


def test_first_view_answers_bits_size_and_quality(text: str) -> None:
    first = Page(text[text.index("<header>") : text.index("</header>") + 9]).text
    assert "1.99" in first
    assert "7.3×" in first  # 8.512 / 1.172
    assert "2.24 with every byte on disk" in first  # 8 x 1.172 / 4.18
    assert "0.83" in first
    assert "the original scores 0.84: no difference shown (−0.01, 95 % interval −0.03 to +0.01 over" in first


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        (None, ": better (+0.02, 95 % interval +0.00 to +0.04 over prompts)"),
        (1, ": no verdict from one training seed (+0.02, 95 % interval +0.00 to +0.04 over prompts, of one"),
        (3, ": better (+0.02, 95 % interval +0.00 to +0.04 over prompts and 3 training seeds)"),
    ],
)
def test_a_verdict_says_what_it_is_over(data: ReportData, tmp_path: Path, seeds: int | None, words: str) -> None:
    shown = {"difference": Difference(0.021, 0.004, 0.038, 0.01, 600, seeds), "verdict": Verdict.BETTER}
    rungs = [dataclasses.replace(rung, **shown) if rung.name == "stage2" else rung for rung in data.rungs]
    text = write_report(dataclasses.replace(data, rungs=rungs), tmp_path).read_text("utf-8")
    assert words in text


def test_scores_that_were_not_compared_have_no_verdict(data: ReportData, tmp_path: Path) -> None:
    text = write_report(dataclasses.replace(data, final="init"), tmp_path).read_text("utf-8")
    assert "the original scores 0.84<" in text and "worse" not in text


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    rungs = (Rung("full_precision", "Original"), Rung("init", "Packed", 1.99, image_mse=float("nan")))
    bare = ReportData("T", "m", rungs, "init", Sizes(100, 10))
    text = write_report(bare, tmp_path).read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert "GenEval" not in page.text
    assert "Pictures" not in page.text
    assert "nan" not in page.text.lower()


def test_names_are_escaped(tmp_path: Path) -> None:
    rungs = (Rung("full_precision", "<b>&"), Rung("init", 'a"b', 1.99))
    images = {name: np.zeros((1, 8, 8, 3), np.uint8) for name in ("full_precision", "init")}
    text = write_report(
        ReportData("<T>", "<m>", rungs, "init", Sizes(100, 10), pictures=Pictures(['"<i>'], images)), tmp_path
    ).read_text("utf-8")
    assert Page(text).open == []
    assert html.escape("<b>&") in text
    assert "<b>&" not in text
    assert "<T>" not in text


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    rungs = (Rung("full_precision", "a"), Rung("init", "b", 1.99))
    noise = np.random.default_rng(0).integers(0, 256, (2, 768, 768, 3), np.uint8)
    pictures = Pictures(["p", "q"], {"full_precision": noise, "init": noise})
    path = write_report(ReportData("T", "m", rungs, "init", Sizes(100, 10), pictures=pictures), tmp_path)
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.9902, "1.99"),
        (32, "32"),
        (0.0153, "0.0153"),
        (0.00083, "0.00083"),
        (0.000083, "8.3 × 10⁻⁵"),
        (1e-5, "10⁻⁵"),
        (12345.6, "12,346"),
        (-0.5, "−0.5"),
        (0, "0"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_units() -> None:
    assert [size(x) for x in (12, 1_172_000, 216.4e6, 1.72e9)] == ["12 B", "1.17 MB", "216 MB", "1.72 GB"]
    assert [duration(x) for x in (2.14, 131, 9000, None)] == ["2.1 s", "2 min", "2.5 h", "–"]


def test_every_seed_is_shown_with_the_spread(data: ReportData, tmp_path: Path) -> None:
    seeds = [SeedScores(3, 0.95, 31.5), SeedScores(1, 0.91, 31.1), SeedScores(2, 0.93, None)]
    rungs = [dataclasses.replace(rung, seeds=seeds if rung.name == "stage2" else seeds[:1]) for rung in data.rungs]
    text = write_report(dataclasses.replace(data, rungs=rungs), tmp_path).read_text("utf-8")
    page = Page(text)
    start = page.text.index("Seed by seed")
    spread = page.text[start : page.text.index("Six tasks", start)].replace("\n", "")
    assert page.open == [] and spread.count("seed ") == 3 and "Noise" not in spread
    assert "After Stage II, mean0.93 0.91 – 0.9531.3 31.1 – 31.5seed 10.9131.1seed 20.93–seed 30.9531.5" in spread


def test_votes_and_an_evaluation_are_shown(data: ReportData, tmp_path: Path) -> None:
    topics = (Topic("<Animals>", "Basic"),) * 3
    votes = tuple(Vote("anna", pair, "aab"[pair], "a", 900, "") for pair in range(3))
    results = vote_results(Record(("packed & co", "full"), ("p",) * 3, topics, votes))
    scores = ScoreTable(("metric", "this model"), (("clip", "0.3<1"),), {"sampler": "pndm"}, None)
    text = write_report(dataclasses.replace(data, votes=results, evaluated=scores), tmp_path).read_text("utf-8")
    page = Page(text)
    assert page.open == [] and "<Animals>" in page.text and "<Animals>" not in text
    assert "2 : 1" in text and "3 votes of 1 voter." in page.text and "No preference is shown" in page.text
    assert "clip0.3<1" in page.text and "sampler: pndm." in page.text
    bare = write_report(data, tmp_path / "bare").read_text("utf-8")
    assert "Human preference" not in bare and "Evaluation" not in bare and "Seed by seed" not in bare
