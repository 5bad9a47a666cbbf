"""The paper's figures of an analysis: every layer's error at each bit width, and the skewness of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsfusion.sensitivity.skewness import NEARLY_SYMMETRIC, nearly_symmetric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED_KINDS = 12
"""Kinds that have a colour of their own at most; the paper names the shortcuts and the cross-attention."""


def error_figure(
    values: Mapping[int, Mapping[str, float]], label: str, kinds: Mapping[str, str], *, logarithmic: bool
) -> Figure:
    """Figures 2 and 9 to 12: a panel for each bit width, a bar for each layer in its order, coloured by its kind.

    Args:
        values: bit width -> layer -> error.
        label: the vertical axis's.
        kinds: layer -> what it is there for, in words.
        logarithmic: whether its scale is.
    """
    figure, axes = _panels(len(values), sharey=True)
    colours = _colours(next(iter(values.values())), kinds)
    for axis, (bits, errors) in zip(axes, values.items(), strict=True):
        for kind, colour in colours.items():
            places = [place for place, name in enumerate(errors) if kinds[name] == kind]
            heights = [list(errors.values())[place] for place in places]
            axis.bar(places, heights, width=1.0, color=colour, label=kind)
        axis.set_yscale("log" if logarithmic else "linear")
        axis.set_ylabel(label)
        axis.set_title(f"{bits} bit{'s' * (bits > 1)}", loc="left", fontsize=10)
        axis.margins(x=0.005)
    axes[-1].set_xlabel("layer, in the order of the model")
    axes[0].legend(fontsize=7, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.12), frameon=False)
    return figure


def skewness_figure(values: Mapping[str, float]) -> Figure:
    """Figure 8: the skewness of each layer's weights."""
    figure, (axis,) = _panels(1, sharey=False)
    axis.plot(list(values.values()), ".", markersize=4, color="tab:blue")
    for edge in (-NEARLY_SYMMETRIC, NEARLY_SYMMETRIC):
        axis.axhline(edge, color="0.6", linewidth=0.8)
    axis.set_ylabel("skewness of the weights")
    axis.set_xlabel("layer, in the order of the model")
    share = nearly_symmetric(values)
    axis.set_title(f"{share:.0%} of {len(values)} layers within ±{NEARLY_SYMMETRIC}", loc="left", fontsize=10)
    return figure


def _panels(count: int, *, sharey: bool) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 2.0 * count), layout="constrained")
    axes = figure.subplots(count, 1, sharex=True, sharey=sharey, squeeze=False)[:, 0]
    return figure, list(axes)


def _colours(layers: Mapping[str, float], kinds: Mapping[str, str]) -> dict[str, Any]:
    from matplotlib import colormaps

    found = list(dict.fromkeys(kinds[name] for name in layers))
    palette = colormaps["tab20"](np.linspace(0, 1, max(_NAMED_KINDS, len(found))))
    return dict(zip(found, palette, strict=False))
