"""The recipe as a picture: how many bits each layer has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsfusion.architectures.registry import layer_kind
from bitsfusion.artifact.inspect import Inspection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bits_figure(inspection: Inspection) -> Figure:
    """A bar a layer in the order of the model: as wide as its weights, as high as its bits, so that area is size."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    layers = inspection.layers
    kinds = list(dict.fromkeys(layer_kind(layer.name) for layer in layers))
    palette = colormaps["tab20"]
    colours = {kind: palette(number % 20) for number, kind in enumerate(kinds)}
    total = sum(layer.weights for layer in layers)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axis = figure.subplots()
    start, named = 0.0, set()
    for layer in layers:
        kind, width = layer_kind(layer.name), 100 * layer.weights / total
        axis.bar(
            start,
            layer.bits,
            width=width,
            align="edge",
            color=colours[kind],
            edgecolor="white",
            linewidth=0.2,
            label=None if kind in named else kind,
        )
        named.add(kind)
        start += width
    axis.axhline(inspection.average_bits, color="0.25", linewidth=0.8, linestyle="--")
    axis.set_xlim(0, 100)
    axis.set_ylim(0, max(8, *(layer.bits for layer in layers)) + 0.3)
    axis.set_xlabel(f"share of the weights of {len(layers)} layers, %, in the order of the model")
    axis.set_ylabel("bits")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=6, fontsize=7, frameon=False)
    return figure
