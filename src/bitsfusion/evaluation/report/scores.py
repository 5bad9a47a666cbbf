"""The scores of a report: the ladder of models, and the six tasks of GenEval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from html import escape

from bitsfusion.data.world.captions import TASKS
from bitsfusion.evaluation.report.figures import interval, section
from bitsfusion.evaluation.report.numbers import duration, number
from bitsfusion.evaluation.report_data import ReportData, Rung

_TASK_LABELS = {
    "single_object": "One object",
    "two_object": "Two objects",
    "counting": "Counting",
    "colors": "Colours",
    "position": "Position",
    "color_attr": "Colour of each",
}


def ladder(data: ReportData) -> str:
    """A row a rung; a column that no rung has a figure for is left out."""
    domain = _domain(data.rungs)
    reference = data.rung(data.reference)
    line = reference.geneval.overall if reference.geneval else None

    def geneval(rung: Rung) -> str:
        score = rung.geneval
        if score is None:
            return "–"
        track = interval(score.overall, score.low, score.high, domain, _style(data, rung), line)
        bounds = f"<small>{score.low:.2f} – {score.high:.2f}</small>"
        return f'<span class="score"><b>{score.overall:.3f}</b> {bounds}</span>{track}'

    columns: list[tuple[str, Callable[[Rung], object], Callable[[Rung], str]]] = [
        ("Bits", lambda r: r.bits, lambda r: number(r.bits)),
        ("GenEval, 95 %", lambda r: r.geneval, geneval),
        ("Noise error", lambda r: r.noise_error, lambda r: number(r.noise_error, 2)),
        ("Noise loss", lambda r: r.noise_loss, lambda r: number(r.noise_loss, 3)),
        ("CLIP score", lambda r: r.clip_score, lambda r: number(r.clip_score, 4)),
        ("Image MSE", lambda r: r.image_mse, lambda r: number(r.image_mse)),
        ("Made in", lambda r: r.seconds, lambda r: duration(r.seconds)),
    ]
    kept = [(name, cell) for name, value, cell in columns if any(value(rung) is not None for rung in data.rungs)]
    head = "".join(
        f'<th scope="col" role="columnheader">{name}</th>' for name in ["Model", *(name for name, _ in kept)]
    )
    rows = []
    for rung in data.rungs:
        title = f"{escape(rung.label)}<small>{escape(rung.note)}</small>"
        cells = "".join(f'<td role="cell" data-label="{name}"><div>{cell(rung)}</div></td>' for name, cell in kept)
        opening = f'<tr role="row" class="{_style(data, rung)}"><th scope="row" role="rowheader">'
        rows.append(f"{opening}{title}</th>{cells}</tr>")
    table = (
        f'<table class="ladder" role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )
    lead = "Every model was asked for the same prompts with the same seeds."
    if line is not None:
        spans = f"from {domain[0]:.2f} to {domain[1]:.2f}"
        lead += f" A dot is a score with its 95 % interval, {spans}; the line marks {escape(reference.label)}."
    explained = {
        "Noise error": "Noise error is the mean squared difference to the original’s predicted noise",
        "Noise loss": "noise loss that to the true noise",
    }
    present = [words for name, words in explained.items() if name in dict(kept)]
    if present:
        text = ", ".join(present)
        lead += f" {text[0].upper()}{text[1:]}."
    return section("Step by step", lead, table)


def task_panels(data: ReportData) -> str:
    """A panel a task, a line a rung. Empty where no rung has task scores."""
    reference = data.rung(data.reference).geneval
    panels = []
    for task in TASKS:
        line = reference.tasks[task].accuracy if reference and task in reference.tasks else None
        rows = []
        for rung in data.rungs:
            score = rung.geneval.tasks.get(task) if rung.geneval else None
            if score is None:
                continue
            track = interval(score.accuracy, score.low, score.high, (0.0, 1.0), _style(data, rung), line)
            title = f"{score.correct} of {score.images}, 95 % {score.low:.2f} – {score.high:.2f}"
            rows.append(f'<li title="{title}"><span>{escape(rung.label)}</span>{track}<b>{score.accuracy:.2f}</b></li>')
        if rows:
            panels.append(f"<div><h3>{_TASK_LABELS[task]}</h3><ul>{''.join(rows)}</ul></div>")
    body = f'<div class="panels">{"".join(panels)}</div>' if panels else ""
    return section("Six tasks", "The share of images that show what was asked, from 0 to 1.", body)


def _domain(rungs: Iterable[Rung]) -> tuple[float, float]:
    """Bounds in steps of .05 around every rung's interval."""
    scores = [rung.geneval for rung in rungs if rung.geneval]
    if not scores:
        return 0.0, 1.0
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    return max(0.0, math.floor(low * 20 - 0.2) / 20), min(1.0, math.ceil(high * 20 + 0.2) / 20)


def _style(data: ReportData, rung: Rung) -> str:
    return {data.final: "final", data.reference: "reference"}.get(rung.name, "between")
