"""Small charts as HTML and SVG text. The drawing stretches with the page while its labels keep their size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from bitsfusion.evaluation.report.numbers import number
from bitsfusion.evaluation.report_data import Curve, LayerRow

HUES = 7
"""How many categorical colours the style sheet has: classes `hue0` .. `hue6`."""

_MOST_POINTS = 240
_MOST_TICKS = 7


def section(title: str, lead: str, body: str) -> str:
    """A section with its heading and opening words (HTML); nothing where `body` is empty."""
    opening = f"<p>{lead}</p>" if lead else ""
    return f"<section><h2>{escape(title)}</h2>{opening}{body}</section>" if body else ""


def interval(value: float, low: float, high: float, domain: tuple[float, float], style: str, line: float | None) -> str:
    """A dot with its interval on a track that spans `domain`; `line` draws a mark to compare with."""

    def percent(x: float) -> str:
        return f"{100 * min(1.0, max(0.0, (x - domain[0]) / (domain[1] - domain[0]))):.2f}%"

    mark = "" if line is None else f'<i class="mark" style="left:{percent(line)}"></i>'
    whisker = f"left:{percent(low)};right:calc(100% - {percent(high)})"
    return (
        f'<span class="track {style}" aria-hidden="true">{mark}<i class="whisker" style="{whisker}"></i>'
        f'<i class="dot" style="left:{percent(value)}"></i></span>'
    )


def legend(entries: Mapping[str, str]) -> str:
    """Labels with a swatch each: label -> class of the colour."""
    items = "".join(f'<li><i class="swatch {style}"></i>{escape(label)}</li>' for label, style in entries.items())
    return f'<ul class="legend">{items}</ul>'


def stacked_bar(parts: Sequence[tuple[float, str]]) -> str:
    """One bar of (amount, class of the colour) parts, as wide as their amounts."""
    pieces = "".join(f'<i class="{style}" style="flex-grow:{amount:.6g}"></i>' for amount, style in parts)
    return f'<div class="stack" aria-hidden="true">{pieces}</div>'


def line_plot(curves: Sequence[Curve], x_label: str, y_label: str) -> str:
    """Lines over a common x; y is logarithmic where it spans more than a factor of ten. Empty if there is nothing."""
    drawn = [(curve.label, _thinned(curve)) for curve in curves]
    drawn = [(label, points) for label, points in drawn if len(points)]
    if not drawn:
        return ""
    every = np.concatenate([points for _, points in drawn])
    x_low, x_high = float(every[:, 0].min()), float(every[:, 0].max())
    y_low, y_high = float(every[:, 1].min()), float(every[:, 1].max())
    logarithmic = y_low > 0 and y_high > 10 * y_low
    if logarithmic:
        bottom, top, y_ticks = _log_scale(y_low, y_high)
    else:
        y_ticks = _ticks(min(0.0, y_low), y_high)
        bottom, top = y_ticks[0], y_ticks[-1]

    def x_at(x: float) -> float:
        return 100 * (x - x_low) / ((x_high - x_low) or 1.0)

    def y_at(y: float) -> float:
        if logarithmic:
            return 100 - 100 * math.log(y / bottom) / math.log(top / bottom)
        return 100 - 100 * (y - bottom) / (top - bottom)

    paths = "".join(
        f'<path class="line hue{i % HUES}" d="M{" L".join(f"{x_at(x):.2f} {y_at(y):.2f}" for x, y in points)}"/>'
        for i, (_, points) in enumerate(drawn)
    )
    key = legend({label: f"hue{i % HUES}" for i, (label, _) in enumerate(drawn)})
    x_ticks = [tick for tick in _ticks(x_low, x_high) if x_low <= tick <= x_high]
    summary = f"{y_label} over {x_label}: " + "; ".join(
        f"{label} from {number(float(points[0, 1]))} to {number(float(points[-1, 1]))}" for label, points in drawn
    )
    scale = f"{y_label}, logarithmic" if logarithmic else y_label
    below, left = [(tick, x_at(tick)) for tick in x_ticks], [(tick, y_at(tick)) for tick in y_ticks]
    return key + _frame(paths, below, left, x_label, scale, summary)


def layer_plot(layers: Sequence[LayerRow], hue_of: Mapping[str, str]) -> str:
    """A bar a layer in the network's order: as wide as its weights, as high as its bits, so that area is size."""
    total = sum(layer.weights for layer in layers)
    highest = max(8, *(layer.bits for layer in layers))
    bars, start = [], 0
    for layer in layers:
        left, width = 100 * start / total, 100 * layer.weights / total
        height = 100 * layer.bits / highest
        title = escape(f"{layer.name}: {layer.bits} bits, {layer.weights:,} weights, {layer.kind}")
        bars.append(
            f'<rect class="{hue_of[layer.kind]}" x="{left:.3f}" y="{100 - height:.2f}" width="{width:.3f}" '
            f'height="{height:.2f}"><title>{title}</title></rect>'
        )
        start += layer.weights
    shares = [(share, float(share)) for share in (0, 25, 50, 75, 100)]
    steps = [(float(b), 100 - 100 * b / highest) for b in range(0, highest + 1, 2)]
    summary = f"Bits of {len(layers)} layers in the network's order"
    return _frame("".join(bars), shares, steps, "share of the weights, %, from input to output", "bits", summary)


def _frame(
    drawing: str,
    x_ticks: Sequence[tuple[float, float]],
    y_ticks: Sequence[tuple[float, float]],
    x_label: str,
    y_label: str,
    summary: str,
) -> str:
    """`drawing` in a 100 x 100 box, stretched; ticks are (value, percent of the box)."""
    rules = "".join(f'<line x1="0" x2="100" y1="{y:.2f}" y2="{y:.2f}"/>' for _, y in y_ticks)
    left = "".join(f'<span style="top:{y:.2f}%">{number(value)}</span>' for value, y in y_ticks)
    below = "".join(f'<span style="left:{x:.2f}%">{number(value)}</span>' for value, x in x_ticks)
    return (
        f'<div class="plot" role="img" aria-label="{escape(summary)}"><div class="y-label">{escape(y_label)}</div>'
        f'<div class="y-ticks" aria-hidden="true">{left}</div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none"><g class="rules">{rules}</g>{drawing}</svg>'
        f'<div class="x-ticks" aria-hidden="true">{below}</div><div class="x-label">{escape(x_label)}</div></div>'
    )


def _thinned(curve: Curve) -> npt.NDArray[np.float64]:
    """Finite (x, y) points, at most `_MOST_POINTS`: means of neighbours where there are more."""
    points = np.stack([np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)], axis=1)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) <= _MOST_POINTS:
        return points
    return np.stack([part.mean(axis=0) for part in np.array_split(points, _MOST_POINTS)])


def _ticks(low: float, high: float) -> list[float]:
    """About five round values that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, max(last, first + 1) + 1)]


def _log_scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Bounds of 1, 2 or 5 times a power of ten around [low, high], and round values between them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    bottom = max(mark for mark in marks if mark <= low * (1 + 1e-9))
    top = min(mark for mark in marks if mark >= high * (1 - 1e-9))
    ticks = [mark for mark in marks if bottom <= mark <= top]
    if len(ticks) > _MOST_TICKS:
        ticks = [10.0**power for power in powers if bottom <= 10.0**power <= top]
    return bottom, top, ticks
