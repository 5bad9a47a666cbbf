"""The charts of page and card, by matplotlib: lines over steps, and the bits of each layer."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from bitsfusion.report.data import Curve, LayerRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 240
_INK = "#808087"
"""Reads on light and dark paper."""


def line_chart(curves: Sequence[Curve], x_label: str, y_label: str) -> Figure | None:
    """Lines over a common x; y is logarithmic where it spans more than a factor of ten. None if there is nothing."""
    lines = [(curve.label, points) for curve in curves if len(points := _thinned(curve))]
    if not lines:
        return None
    figure, axes = _figure(9, 3.2)
    for label, points in lines:
        axes.plot(*points.T, label=label)
    heights = np.concatenate([points[:, 1] for _, points in lines])
    if heights.min() > 0 and heights.max() > 10 * heights.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, heights.min()))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper left", ncols=6, frameon=False, labelcolor=_INK)
    return figure


def layer_chart(layers: Sequence[LayerRow], average: float | None = None) -> Figure:
    """A bar a layer in the network's order: as wide as its weights, as high as its bits, so that its area is its size.

    Args:
        average: bits a weight, where a broken line is drawn.
    """
    from matplotlib import colormaps

    figure, axes = _figure(9, 3.4)
    weights = np.array([layer.weights for layer in layers])
    widths = 100 * weights / weights.sum()
    lefts = np.cumsum(widths) - widths
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    for number, kind in enumerate(kinds):
        own = [place for place, layer in enumerate(layers) if layer.kind == kind]
        heights = [layers[place].bits for place in own]
        color = colormaps["tab20"](number % 20)
        axes.bar(lefts[own], heights, widths[own], align="edge", color=color, label=kind)
    if average is not None:
        axes.axhline(average, color=_INK, linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 100), ylim=(0, max(8, *(layer.bits for layer in layers)) + 0.3))
    axes.set(xlabel=f"share of the weights of {len(layers)} layers, %, in the order of the model", ylabel="bits")
    figure.legend(loc="outside upper left", ncols=6, fontsize=7, frameon=False, labelcolor=_INK)
    return figure


def svg(figure: Figure, label: str) -> Markup:
    """A figure as an element of a page, with nothing in it that names another place; `label` is said aloud."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(stream, format="svg", transparent=True)
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", text, count=5)
    text = re.sub(r' id="[\w.]+_\d+"', "", text.replace("xlink:href", "href"))
    return Markup(text.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(label), 1))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_INK)
    axes.tick_params(colors=_INK, which="both")
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _thinned(curve: Curve) -> npt.NDArray[np.float64]:
    """Finite (x, y) points, at most `_MOST_POINTS`: means of neighbours where there are more."""
    points = np.stack([np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)], axis=1)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) <= _MOST_POINTS:
        return points
    return np.stack([part.mean(axis=0) for part in np.array_split(points, _MOST_POINTS)])
