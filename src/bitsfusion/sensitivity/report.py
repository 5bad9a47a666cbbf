"""Tables 1 and 2 and the figures of an analysis, written to a folder."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from bitsfusion.architectures.registry import model_layers
from bitsfusion.io.atomic import atomic_path
from bitsfusion.io.texts import write_json, write_text
from bitsfusion.sensitivity.correlation import Correlation, Metric, correlate_bits, correlate_tables
from bitsfusion.sensitivity.figures import error_figure, skewness_figure
from bitsfusion.sensitivity.skewness import nearly_symmetric, skewness
from bitsfusion.sensitivity.table import MEASURED_BITS, SensitivityTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS: dict[Metric, str] = {"mse": "MSE", "psnr": "PSNR, dB", "lpips": "LPIPS", "clip_drop": "drop of CLIP score"}


def write_report(table: SensitivityTable, unet: nn.Module, folder: Path) -> list[Path]:
    """Writes tables.json, tables.md and a PNG for each metric that was measured and for the skewness.

    Returns:
        The files, in that order.
    """
    kinds = {name: layer.kind for name, layer in model_layers(unet).items()}
    figures: dict[str, Figure] = {}
    for metric in measured(table):
        values = {bits: table.column(metric, bits) or {} for bits in MEASURED_BITS}
        figures[metric] = error_figure(values, LABELS[metric], kinds, logarithmic=metric == "mse")
    skews = skewness(unet)
    figures["skewness"] = skewness_figure(skews)

    found = tables(table, kinds)
    found["skewness"] = {"within_half": nearly_symmetric(skews), "layers": skews}
    files = [folder / "tables.json", folder / "tables.md"]
    write_json(files[0], found)
    write_text(files[1], _markdown(table, found))
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        with atomic_path(files[-1]) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    return files


def measured(table: SensitivityTable) -> list[Metric]:
    """The metrics that every row has; a method without images has the squared error alone."""
    return [metric for metric in LABELS if all(table.column(metric, bits) is not None for bits in MEASURED_BITS)]


def tables(table: SensitivityTable, kinds: Mapping[str, str]) -> dict[str, Any]:
    """Table 1 (the squared error with each other metric, by bit width), Table 2 (each metric between two bit widths)
    and the mean squared error of each kind of layer; correlations are Pearson's and of ranks, with their signs.

    Args:
        kinds: layer -> what it is there for, in words.
    """
    metrics = measured(table)
    of_kind: dict[str, list[str]] = {}
    for name in table.layers:
        of_kind.setdefault(kinds[name], []).append(name)
    return {
        "schema_version": 1,
        "sensitivity_sha256": table.sha256(),
        "method": table.method,
        "between_metrics": {
            str(bits): {metric: _pair(correlate_tables(table, table, "mse", metric)[bits]) for metric in metrics[1:]}
            for bits in MEASURED_BITS
        },
        "between_bits": {
            metric: {f"{a}-{b}": _pair(correlate_bits(table, a, b, metric)) for a, b in combinations(MEASURED_BITS, 2)}
            for metric in metrics
        },
        "kinds": {
            kind: {
                "layers": len(names),
                **{str(bits): float(np.mean([table.row(name, bits).mse for name in names])) for bits in MEASURED_BITS},
            }
            for kind, names in of_kind.items()
        },
    }


def _pair(found: Correlation) -> dict[str, float | None]:
    return {"pearson": found.pearson, "spearman": found.spearman}


def _markdown(table: SensitivityTable, found: dict[str, Any]) -> str:
    """As the paper prints them: magnitudes of Pearson's correlation."""
    lines = [f"# {table.model}, {table.method}: {len(table.layers)} layers", ""]
    others = list(next(iter(found["between_metrics"].values())))
    if others:
        lines += ["Table 1. |Pearson| of the MSE with", ""]
        lines += _rows(
            ["bits", *(LABELS[metric] for metric in others)],
            [[bits, *(_magnitude(row[m]) for m in others)] for bits, row in found["between_metrics"].items()],
        )
    pairs = list(found["between_bits"]["mse"])
    lines += ["Table 2. |Pearson| between bit widths", ""]
    lines += _rows(
        ["metric", *pairs],
        [[LABELS[m], *(_magnitude(row[p]) for p in pairs)] for m, row in found["between_bits"].items()],
    )
    lines += ["Mean squared error by kind of layer", ""]
    widths = [str(bits) for bits in MEASURED_BITS]
    by_error = sorted(found["kinds"].items(), key=lambda item: -item[1][widths[0]])
    lines += _rows(
        ["kind", "layers", *(f"{bits} bit" for bits in widths)],
        [[kind, row["layers"], *(f"{row[bits]:.3g}" for bits in widths)] for kind, row in by_error],
    )
    lines += [f"Skewness of the weights within ±0.5: {found['skewness']['within_half']:.1%} of the layers", ""]
    return "\n".join(lines)


def _rows(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in [head, *rows]]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def _magnitude(pair: dict[str, float | None]) -> str:
    return "–" if pair["pearson"] is None else f"{abs(pair['pearson']):.3f}"
