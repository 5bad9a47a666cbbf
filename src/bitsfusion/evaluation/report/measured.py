"""What was measured several times or beside the run: every training seed, people's votes, an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from statistics import fmean

from bitsfusion.evaluation.report.figures import interval, section
from bitsfusion.evaluation.report.numbers import number
from bitsfusion.evaluation.report_data import ReportData, SeedScores
from bitsfusion.vote.results import WinRate
from bitsfusion.vote.results_page import verdict

_SEED_COLUMNS: tuple[tuple[str, Callable[[SeedScores], float | None]], ...] = (
    ("GenEval", lambda seed: seed.geneval),
    ("CLIP score", lambda seed: seed.clip_score),
    ("Noise error", lambda seed: seed.noise_error),
    ("Noise loss", lambda seed: seed.noise_loss),
)


def seed_spread(data: ReportData) -> str:
    """Mean and range over training seeds, and every seed's own figures. Empty where no rung has two seeds."""
    rungs = [rung for rung in data.rungs if len(rung.seeds) > 1]
    columns = [
        (name, value)
        for name, value in _SEED_COLUMNS
        if any(value(seed) is not None for rung in rungs for seed in rung.seeds)
    ]
    rows = []
    for rung in rungs:
        rows.append([f"{rung.label}, mean", *(_spread([value(seed) for seed in rung.seeds]) for _, value in columns)])
        rows += [
            [f"seed {seed.seed}", *(number(value(seed), 4) for _, value in columns)]
            for seed in sorted(rung.seeds, key=lambda seed: seed.seed)
        ]
    if not rows or not columns:
        return ""
    lead = "The same training from other random numbers: the mean, and from the lowest to the highest."
    return section("Seed by seed", lead, _table(["Model", *(name for name, _ in columns)], rows, "Seed by seed"))


def votes(data: ReportData) -> str:
    """The results of `bitsfusion vote`. Empty without votes."""
    results = data.votes
    if results is None or results.votes.share is None:
        return ""
    a, b = (escape(name) for name in results.names)
    panels = "".join(
        f"<div><h3>{title}</h3><ul>{''.join(map(_rate, rates))}</ul></div>"
        for title, rates in (
            ("All votes", [results.votes.model_copy(update={"name": results.names[0]})]),
            ("Category", results.categories),
            ("Challenge", results.challenges),
        )
        if rates
    )
    agreement = results.agreement
    agreed = "" if agreement.share is None else f" Two voters agreed on {100 * agreement.share:.0f} % of what both saw."
    given, people = _counted(results.votes.a + results.votes.b, "vote"), _counted(len(results.voters), "voter")
    lead = (
        f"“{escape(results.question)}” {escape(verdict(results))} {given} of {people}.{agreed} A dot is the share of "
        f"{a} against {b}, from 0 to 1, with its 95 % interval; the line marks a half."
    )
    return section("Human preference", lead, f'<div class="panels">{panels}</div>')


def evaluated(data: ReportData) -> str:
    """The scores of `bitsfusion evaluate`. Empty without them."""
    scores = data.evaluated
    if scores is None:
        return ""
    lead = "; ".join(f"{escape(name)}: {escape(value)}" for name, value in scores.settings.items()) + "."
    rows = [[escape(cell) for cell in row] for row in scores.rows]
    return section("Evaluation", lead, _table([escape(name) for name in scores.columns], rows, "Evaluation"))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _rate(rate: WinRate) -> str:
    if rate.share is None or rate.low is None or rate.high is None:
        return ""
    track = interval(rate.share, rate.low, rate.high, (0.0, 1.0), "final", 0.5)
    title = f"{rate.a} : {rate.b}, 95 % {rate.low:.2f} – {rate.high:.2f}"
    return f'<li title="{title}"><span>{escape(rate.name)}</span>{track}<b>{rate.share:.2f}</b></li>'


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"<b>{number(fmean(known), 4)}</b> <small>{number(min(known), 4)} – {number(max(known), 4)}</small>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A table of finished cells (HTML)."""
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="measured">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
