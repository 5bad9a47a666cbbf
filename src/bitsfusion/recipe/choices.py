"""What an assignment chooses from: each layer's error and cost at every bit width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitsfusion.architectures.layers import FIRST_LAST_BITS
from bitsfusion.numerics import MAX_BITS, MIN_BITS, level_bits
from bitsfusion.packing.accounting import FEATURE_BITS
from bitsfusion.sensitivity.table import MEASURED_BITS, SensitivityTable

Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.int64]

ERROR_PER_EXTRA_BIT = 0.25
"""Used above the measured bits: one more bit halves the step between levels, hence quarters the squared error.

Measured on 27 layers of the embedded model, noise error from 3 to 8 bits: a factor of 0.23 to 0.28 a bit on
(geometric) average, 0.16 to 0.40 for single layers.
"""

ROUNDING = 1e-12  # relative: a target that is exactly an assignment's average admits that assignment


@dataclass(frozen=True)
class Choices:
    """L layers at 1..8 bits; column b - 1 belongs to b bits.

    errors [L, 8]: measured at 1, 2, 3 bits, above that extrapolated from 3 bits.
    costs [L, 8]: bits by Appendix H, log2(2^b + 1) times the layer's weights.
    """

    names: tuple[str, ...]
    weights: Floats
    errors: Floats
    costs: Floats
    fixed_bits: float
    """Bits that the layers without a choice and the cached time features take."""
    all_weights: int
    """N_w: weights of all layers, removed ones included."""

    def average(self, bits: Bits) -> float:
        """The average bits (Appendix H) of an assignment [L]."""
        return float((self.cost(bits) + self.fixed_bits) / self.all_weights)

    def budget(self, average: float) -> float:
        """Bits left for the L layers at a target average."""
        return average * self.all_weights * (1 + ROUNDING) - self.fixed_bits

    def cost(self, bits: Bits) -> float:
        """The bits that an assignment [L] costs."""
        return float(self.costs[np.arange(len(bits)), bits - 1].sum())

    def error(self, bits: Bits) -> float:
        """The summed error of an assignment [L]."""
        return float(self.errors[np.arange(len(bits)), bits - 1].sum())


def choices_of(table: SensitivityTable, keep_time_layers: bool = False) -> Choices:
    """The choices a table offers; time layers are removed and their features cached, or kept at 8 bits.

    Raises:
        InputError: a layer lacks a row at 1, 2 or 3 bits.
    """
    columns = []
    for bits in MEASURED_BITS:
        column = table.column("mse", bits)
        assert column is not None  # mse is never null
        columns.append(list(column.values()))
    last = MEASURED_BITS[-1]
    for bits in range(last + 1, MAX_BITS + 1):
        columns.append([error * ERROR_PER_EXTRA_BIT ** (bits - last) for error in columns[last - 1]])
    weights = np.asarray(list(table.layers.values()), dtype=np.float64)
    costs = weights[:, None] * np.asarray([level_bits(bits) for bits in range(MIN_BITS, MAX_BITS + 1)])
    removed = sum(table.removed.values())
    fixed_weights = sum(table.first_last.values()) + (removed if keep_time_layers else 0)
    features = 0 if keep_time_layers else FEATURE_BITS * table.feature_values
    return Choices(
        names=tuple(table.layers),
        weights=weights,
        errors=np.asarray(columns, dtype=np.float64).T,
        costs=costs,
        fixed_bits=level_bits(FIRST_LAST_BITS) * fixed_weights + features,
        all_weights=int(weights.sum()) + sum(table.first_last.values()) + removed,
    )
