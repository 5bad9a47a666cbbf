"""The paper's figures of its human study: overall (6), by category (14) and by challenge (15)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitsfusion.errors import InputError
from bitsfusion.io.atomic import atomic_path
from bitsfusion.vote.results import VoteResults, WinRate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f5db8", "#c9c7c2")
_LONGEST_NAME = 40


def write_figures(results: VoteResults, folder: Path) -> list[Path]:
    """Writes overall.png, and categories.png and challenges.png where votes have such labels.

    Raises:
        InputError: there are no votes.
        BitsFusionError: a file could not be written.
    """
    if results.votes.share is None:
        raise InputError("figures: got no votes, wanted at least one")
    rates = {"overall": [results.votes], "categories": results.categories, "challenges": results.challenges}
    paths = []
    for name, chosen in rates.items():
        if chosen:
            path = folder / f"{name}.png"
            with atomic_path(path) as temporary:
                win_figure(results.names, chosen).savefig(temporary, format="png", dpi=160)
            paths.append(path)
    return paths


def win_figure(names: tuple[str, str], rates: Sequence[WinRate]) -> Figure:
    """One bar for each rate, split between A and B with their votes; a whisker is the 95 % interval of A's share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.15 + 0.42 * len(rates)), layout="constrained")
    axis = figure.subplots()
    for place, rate in enumerate(rates):
        if rate.share is None or rate.low is None or rate.high is None:
            continue
        share, low, high = (100 * value for value in (rate.share, rate.low, rate.high))
        axis.barh(place, share, color=COLOURS[0], height=0.66, label=None if place else _short(names[0]))
        axis.barh(
            place, 100 - share, left=share, color=COLOURS[1], height=0.66, label=None if place else _short(names[1])
        )
        axis.plot([low, high], [place, place], color="#1c1c21", linewidth=1.4, solid_capstyle="butt")
        axis.text(101, place, f"{share:.1f} %   {rate.a} : {rate.b}", va="center", fontsize=8)
    axis.axvline(50, color="#62626b", linewidth=0.8, linestyle=(0, (3, 3)))
    axis.set_yticks(range(len(rates)), [rate.name for rate in rates], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("votes, %; lines are 95 % intervals", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[-_LONGEST_NAME + 1 :]
