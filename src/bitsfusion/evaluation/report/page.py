"""The report's page: a first view that answers how many bits, how small and how good; then the sections."""

from __future__ import annotations

import math
from html import escape
from importlib import resources

from bitsfusion.evaluation.report.figures import line_plot, section
from bitsfusion.evaluation.report.measured import evaluated, seed_spread, votes
from bitsfusion.evaluation.report.numbers import number, signed, size
from bitsfusion.evaluation.report.pictures import contact_sheet, picture_strip
from bitsfusion.evaluation.report.scores import ladder, task_panels
from bitsfusion.evaluation.report.weights import byte_bars, layer_bits
from bitsfusion.evaluation.report_data import ReportData, Rung
from bitsfusion.metrics.geneval import GenEvalSummary

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(data: ReportData) -> str:
    """The whole page as one string of HTML: no script, no request to anywhere."""
    style = resources.files("bitsfusion.evaluation.report").joinpath("page.css").read_text("utf-8")
    sections = [
        _first_view(data),
        ladder(data),
        seed_spread(data),
        task_panels(data),
        evaluated(data),
        votes(data),
        contact_sheet(data),
        byte_bars(data.sizes),
        layer_bits(data.layers),
        _curves(data),
        _settings(data),
    ]
    body = "\n".join(text for text in sections if text)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(data.title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<footer>Made by bitsfusion. Everything on this page is in this one file.</footer>
</body>
</html>
"""


def _first_view(data: ReportData) -> str:
    reference, final, sizes = data.rung(data.reference), data.rung(data.final), data.sizes
    bits = "by the paper’s count"
    if sizes.weights:
        bits += f"; {8 * sizes.disk_bytes / sizes.weights:.2f} with every byte on disk"
    smaller = f"{escape(sizes.what)}: {size(sizes.disk_bytes)} on disk, {size(sizes.fp16_bytes)} at 16 bits"
    facts = [
        (number(final.bits), "bits a weight", bits),
        (f"{sizes.fp16_bytes / sizes.disk_bytes:.1f}×", "smaller", smaller),
        *_quality(reference, final),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd><b>{value}</b><span>{more}</span></dd></div>" for value, name, more in facts
    )
    return (
        f'<header><p class="model">{escape(data.model)}</p><h1>{escape(data.title)}</h1>'
        f'<dl class="facts">{items}</dl>{picture_strip(data)}</header>'
    )


def _quality(reference: Rung, final: Rung) -> list[tuple[str, str, str]]:
    """How good the result is, by the best measure that both rungs have."""
    if reference.geneval and final.geneval:
        return [(f"{final.geneval.overall:.2f}", "GenEval", _difference(reference, final))]
    if reference.clip_score is not None and final.clip_score is not None:
        return [(f"{final.clip_score:.4f}", "CLIP score", f"the original scores {reference.clip_score:.4f}")]
    if final.image_mse is not None:
        return [(number(final.image_mse), "image MSE", "to the original’s images, same prompts and seeds")]
    return []


def _difference(reference: Rung, final: Rung) -> str:
    """The two scores compared: prompt by prompt where that was measured, else by their intervals."""
    assert reference.geneval is not None
    assert final.geneval is not None
    mean, low, high = final.paired or _independent(reference.geneval, final.geneval)
    verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    interval = f"{signed(mean)}, 95 % interval {signed(low)} to {signed(high)}"
    return f"the original scores {reference.geneval.overall:.2f}: {verdict} ({interval})"


def _independent(reference: GenEvalSummary, final: GenEvalSummary) -> tuple[float, float, float]:
    """The difference of two scores; its interval adds the two half widths as independent errors."""
    change = final.overall - reference.overall
    below = math.hypot(final.overall - final.low, reference.high - reference.overall)
    above = math.hypot(final.high - final.overall, reference.overall - reference.low)
    return change, change - below, change + above


def _curves(data: ReportData) -> str:
    lead = (
        "How far one step’s prediction moves the latent from the original’s (equation 9 of the paper), "
        "from little noise on the left to pure noise on the right."
    )
    steps = section("Error over the time step", lead, line_plot(data.step_errors, "time step t", "latent error"))
    return steps + section("Training", "", line_plot(data.losses, "training step", "loss"))


def _settings(data: ReportData) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in data.settings.items()
    )
    command = f"<pre><code>{escape(data.command)}</code></pre>" if data.command else ""
    return section("To do it again", "", command + (f'<dl class="settings">{rows}</dl>' if rows else ""))
