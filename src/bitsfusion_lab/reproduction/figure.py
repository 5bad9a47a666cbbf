"""A table as a picture: each row's GenEval with its interval and its seeds, CLIP score and teacher error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitsfusion.io.atomic import atomic_path

_PANELS = (("geneval", "GenEval"), ("clip_score", "CLIP score"), ("noise_error", "teacher error"))


def draw_table(content: dict[str, Any], path: Path) -> None:
    """Writes a PNG: means as dots, training seeds as ticks, full precision as a line."""
    from matplotlib.figure import Figure

    rows = [row for row in content["rows"] if "geneval" in row]
    whole, others = rows[0], rows[1:]
    figure = Figure(figsize=(12, 1.3 + 0.45 * max(1, len(others))), layout="constrained")
    axes = figure.subplots(1, len(_PANELS), sharey=True)
    labels = [f"{row['label']}\n{row['bytes'] / 1e6:.2f} MB" for row in others]
    for axis, (key, title) in zip(axes, _PANELS, strict=True):
        for place, row in enumerate(others):
            low_high = row["against_full_precision"]
            if key == "geneval" and low_high is not None and whole[key]["mean"] is not None:
                ends = [whole[key]["mean"] + low_high[end] for end in ("low", "high")]
                axis.plot(ends, [place, place], color="0.6", linewidth=1.5, zorder=1)
            seeds = [value for value in row[key]["seeds"] if value is not None]
            axis.plot(seeds, [place] * len(seeds), "|", color="0.35", markersize=8, zorder=2)
            if row[key]["mean"] is not None:
                axis.plot([row[key]["mean"]], [place], "o", color="tab:blue", markersize=5, zorder=3)
        if whole[key]["mean"]:  # a teacher error of zero has no place on a logarithm
            axis.axvline(whole[key]["mean"], color="tab:green", linewidth=1, linestyle="--")
        if key == "noise_error" and others:
            axis.set_xscale("log")
        else:
            axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel(title)
        axis.grid(axis="x", color="0.92")
    axes[0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.suptitle(f"Table {content['table']}: {content['title']}", fontsize=11, x=0.01, ha="left")
    note = (
        "dots: means; ticks: training seeds; grey: paired 95 % interval around full precision; dashed: full precision"
    )
    figure.supxlabel(note, fontsize=7, color="0.35")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
