"""The report's page, one string of HTML: what its template (templates/page.html) shows, worked out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bitsfusion.evaluation.estimates import Difference, Verdict
from bitsfusion.io.texts import write_text
from bitsfusion.metrics.geneval.prompts import TASKS
from bitsfusion.report.charts import layer_chart, line_chart, svg
from bitsfusion.report.data import ReportData, Rung, SeedScores
from bitsfusion.report.numbers import duration, number, signed, size
from bitsfusion.report.pictures import picture, strip_places
from bitsfusion.report.template import rendered
from bitsfusion.vote.results import VoteResults
from bitsfusion.vote.results_page import verdict

_TASK_LABELS = dict(
    zip(TASKS, ("One object", "Two objects", "Counting", "Colours", "Position", "Colour of each"), strict=True)
) | {"three_object": "Three objects", "size": "Sizes"}
_COLUMNS: tuple[tuple[str, str, Callable[[Rung], str]], ...] = (
    ("Bits", "bits", lambda rung: number(rung.bits)),
    ("GenEval, 95 %", "geneval", lambda rung: ""),
    ("Noise error", "noise_error", lambda rung: number(rung.noise_error, 2)),
    ("Noise loss", "noise_loss", lambda rung: number(rung.noise_loss, 3)),
    ("CLIP score", "clip_score", lambda rung: number(rung.clip_score, 4)),
    ("Image MSE", "image_mse", lambda rung: number(rung.image_mse)),
    ("Made in", "seconds", lambda rung: duration(rung.seconds)),
)
_SEED_COLUMNS = {
    "GenEval": "geneval",
    "CLIP score": "clip_score",
    "Noise error": "noise_error",
    "Noise loss": "noise_loss",
}


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes `folder`/index.html, whole or not at all, and returns its path.

    The page holds its pictures, charts and style, makes no request, and reads on a phone and in the dark.

    Raises:
        BitsFusionError: the file could not be written.
    """
    path = Path(folder) / "index.html"
    write_text(path, page(data))
    return path


def page(data: ReportData) -> str:
    """The whole page: no script, no request to anywhere."""
    charts = [
        (title, lead, svg(figure, f"{y} over {x}"))
        for title, lead, curves, x, y in (
            (
                "Error over the time step",
                "How far one step’s prediction moves the latent from the original’s (equation 9 of the paper), "
                "from little noise on the left to pure noise on the right.",
                data.step_errors,
                "time step t",
                "latent error",
            ),
            ("Training", "", data.losses, "training step", "loss"),
        )
        if (figure := line_chart(curves, x, y)) is not None
    ]
    return rendered(
        "page.html",
        data=data,
        facts=_facts(data),
        styles={rung.name: _style(data, rung) for rung in data.rungs},
        domain=_domain(data.rungs),
        columns=[column for column in _COLUMNS if any(getattr(rung, column[1]) is not None for rung in data.rungs)],
        seeds=_seed_table(data.rungs),
        tasks={label: found for task, label in _TASK_LABELS.items() if (found := _task(data, task))},
        strip=strip_places(data),
        picture=picture,
        bars=_bars(data),
        shares=_shares(data),
        layers=svg(layer_chart(data.layers), f"Bits of {len(data.layers)} layers") if data.layers else "",
        charts=charts,
        votes=None if data.votes is None or data.votes.votes.share is None else _votes(data.votes),
    )


def _facts(data: ReportData) -> list[tuple[str, str, str]]:
    """How many bits, how small and how good: (figure, its name, more)."""
    reference, final, sizes = data.rung(data.reference), data.rung(data.final), data.sizes
    bits = "by the paper’s count"
    if sizes.weights:
        bits += f"; {8 * sizes.disk_bytes / sizes.weights:.2f} with every byte on disk"
    smaller = f"{sizes.what}: {size(sizes.disk_bytes)} on disk, {size(sizes.fp16_bytes)} at 16 bits"
    return [
        (number(final.bits), "bits a weight", bits),
        (f"{sizes.fp16_bytes / sizes.disk_bytes:.1f}×", "smaller", smaller),
        *_quality(reference, final),
    ]


def _quality(reference: Rung, final: Rung) -> list[tuple[str, str, str]]:
    """How good the result is, by the best measure that both rungs have."""
    if reference.geneval and final.geneval:
        more = f"the original scores {reference.geneval.overall:.2f}"
        if final.difference is not None:
            more += f": {difference_text(final.difference, final.verdict or Verdict.NONE)}"
        return [(f"{final.geneval.overall:.2f}", "GenEval", more)]
    if reference.clip_score is not None and final.clip_score is not None:
        return [(f"{final.clip_score:.4f}", "CLIP score", f"the original scores {reference.clip_score:.4f}")]
    if final.image_mse is not None:
        return [(number(final.image_mse), "image MSE", "to the original’s images, same prompts and seeds")]
    return []


def difference_text(difference: Difference, verdict: Verdict) -> str:
    """A difference in words: what it shows, its interval, and what the interval is over."""
    seeds = difference.training_seeds
    over = {None: "over prompts", 1: "over prompts, of one training seed"}.get(
        seeds, f"over prompts and {seeds} training seeds"
    )
    words = "no verdict from one training seed" if seeds == 1 else verdict.value
    interval = f"95 % interval {signed(difference.low)} to {signed(difference.high)}"
    return f"{words} ({signed(difference.mean)}, {interval} {over})"


def _task(data: ReportData, task: str) -> list[tuple[Rung, Any, float | None]]:
    """Each rung that has a score of a task: the rung, the score, and the reference's accuracy."""
    reference = data.rung(data.reference).geneval
    line = reference.tasks[task].accuracy if reference and task in reference.tasks else None
    scored = [(rung, rung.geneval.tasks.get(task)) for rung in data.rungs if rung.geneval]
    return [(rung, score, line) for rung, score in scored if score is not None]


def _seed_table(rungs: Sequence[Rung]) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """Columns and rows: mean and range of each rung that has several training seeds, and every seed's own figures."""
    several = [rung for rung in rungs if len(rung.seeds) > 1]

    def known(seeds: Iterable[SeedScores], field: str) -> list[float]:
        return [value for seed in seeds if (value := getattr(seed, field)) is not None]

    columns = {name: f for name, f in _SEED_COLUMNS.items() if any(known(rung.seeds, f) for rung in several)}
    rows: list[tuple[str, list[Any]]] = []
    for rung in several:
        spreads = [known(rung.seeds, field) for field in columns.values()]
        rows.append(
            (
                f"{rung.label}, mean",
                [(fmean(spread), min(spread), max(spread)) if spread else None for spread in spreads],
            )
        )
        rows += [
            (f"seed {seed.seed}", [number(getattr(seed, field), 4) for field in columns.values()])
            for seed in sorted(rung.seeds, key=lambda seed: seed.seed)
        ]
    return list(columns), rows if columns else []


def _votes(results: VoteResults) -> dict[str, Any]:
    """People's votes: the words, and each list of win rates by its title."""
    agreement = results.agreement.share
    agreed = "" if agreement is None else f" Two voters agreed on {100 * agreement:.0f} % of what both saw."
    given, people = _counted(results.votes.a + results.votes.b, "vote"), _counted(len(results.voters), "voter")
    a, b = results.names
    lead = (
        f"“{results.question}” {verdict(results)} {given} of {people}.{agreed} A dot is the share of "
        f"{a} against {b}, from 0 to 1, with its 95 % interval; the line marks a half."
    )
    every = [results.votes.model_copy(update={"name": a})]
    rates = {"All votes": every, "Category": results.categories, "Challenge": results.challenges}
    shown = {title: [rate for rate in found if rate.share is not None] for title, found in rates.items()}
    return {"lead": lead, "panels": {title: found for title, found in shown.items() if found}}


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _bars(data: ReportData) -> list[tuple[str, int, float, str]]:
    """(name, bytes, share of the largest in %, class) of each size that is known."""
    sizes = data.sizes
    rows = [
        ("Original at 16 bits", sizes.fp16_bytes, "fp16"),
        ("Paper’s count", sizes.counted_bytes, ""),
        ("Entropy bound", sizes.entropy_bytes, ""),
        ("On disk, measured", sizes.disk_bytes, "final"),
        ("In memory", sizes.memory_bytes, ""),
    ]
    known = [(name, count, style) for name, count, style in rows if count is not None]
    largest = max(count for _, count, _ in known)
    return [(name, count, 100 * count / largest, style) for name, count, style in known]


def _shares(data: ReportData) -> dict[int, float]:
    """The share of the weights at each number of bits, in %."""
    weights: Counter[int] = Counter()
    for layer in data.layers:
        weights[layer.bits] += layer.weights
    return {bits: 100 * weights[bits] / weights.total() for bits in sorted(weights)}


def _domain(rungs: Iterable[Rung]) -> tuple[float, float]:
    """Bounds in steps of .05 around every rung's interval."""
    scores = [rung.geneval for rung in rungs if rung.geneval]
    if not scores:
        return 0.0, 1.0
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    return max(0.0, math.floor(low * 20 - 0.2) / 20), min(1.0, math.ceil(high * 20 + 0.2) / 20)


def _style(data: ReportData, rung: Rung) -> str:
    return {data.final: "final", data.reference: "reference"}.get(rung.name, "between")
