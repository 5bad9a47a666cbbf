"""How far two measurements agree on which layers are sensitive (Tables 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from bitsfusion.errors import InputError
from bitsfusion.io.schema import named
from bitsfusion.sensitivity.table import MEASURED_BITS, SensitivityTable

Metric = Literal["mse", "psnr", "lpips", "clip_drop"]


@dataclass(frozen=True)
class Correlation:
    """How one quantity goes with another over the layers: Pearson's r, Spearman's rank correlation, number of layers.

    A correlation is None where one of the two quantities is constant.
    """

    pearson: float | None
    spearman: float | None
    layers: int


def correlate_tables(
    table: SensitivityTable, other: SensitivityTable, metric: Metric = "mse", other_metric: Metric | None = None
) -> dict[int, Correlation]:
    """Correlation of two tables of the same layers, for each of 1, 2 and 3 bits.

    With the same table twice and two metrics it is the paper's Table 1 (which gives magnitudes).

    Raises:
        InputError: the tables have different layers, lack rows, or have no such metric.
    """
    different = sorted(table.layers.keys() ^ other.layers.keys())
    if different:
        raise InputError(f"correlation: got tables of different layers: {named(different)}")
    return {
        bits: _correlate(_column(table, metric, bits), _column(other, other_metric or metric, bits))
        for bits in MEASURED_BITS
    }


def correlate_bits(table: SensitivityTable, bits: int, other_bits: int, metric: Metric = "mse") -> Correlation:
    """Correlation of a metric at two bit widths over the layers of one table (Table 2)."""
    return _correlate(_column(table, metric, bits), _column(table, metric, other_bits))


def _column(table: SensitivityTable, metric: Metric, bits: int) -> dict[str, float]:
    column = table.column(metric, bits)
    if column is None:
        raise InputError(f"correlation: got no {metric} in the table of {table.model} ({table.method}) at {bits} bits")
    return column


def _correlate(values: dict[str, float], others: dict[str, float]) -> Correlation:
    x = np.asarray(list(values.values()))
    y = np.asarray([others[name] for name in values])
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(None, None, len(x))
    return Correlation(float(stats.pearsonr(x, y).statistic), float(stats.spearmanr(x, y).statistic), len(x))
