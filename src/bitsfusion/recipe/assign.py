"""From a sensitivity table to a recipe (section 3.3). Pure: no files, no model, the same result every time."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import numpy as np

from bitsfusion.architectures.layers import FIRST_LAST_BITS
from bitsfusion.errors import InputError
from bitsfusion.numerics import MAX_BITS, MIN_BITS, check_bits
from bitsfusion.packing.accounting import average_bits
from bitsfusion.recipe.choices import ROUNDING, Bits, Choices, choices_of
from bitsfusion.recipe.knapsack import least_error
from bitsfusion.recipe.schema import Recipe
from bitsfusion.recipe.threshold import ABOVE_MEASURED, clip_bonus, fill, search
from bitsfusion.recipe.true_bits import Entropies, by_entropy
from bitsfusion.sensitivity.table import MEASURED_BITS, SensitivityTable

ETA = 0.3
"""The exponent of the layer size in the paper's score (Table 5)."""


class Strategy(str, Enum):
    """How bits are assigned: the paper's threshold, or the least total error within the budget."""

    PAPER = "paper"
    OPTIMAL = "optimal"


def assign(
    table: SensitivityTable,
    target_bits: float,
    strategy: str | Strategy = Strategy.OPTIMAL,
    *,
    eta: float = ETA,
    fill_up: bool = True,
    keep_time_layers: bool = False,
    entropies: Entropies | None = None,
) -> Recipe:
    """The recipe with an average (Appendix H) of at most `target_bits`, as near to it as the layers allow.

    Args:
        eta: exponent of the layer size; used by `paper` only.
        fill_up: spend what the threshold leaves on the layers that gain most per bit; used by `paper` only.
            Differs from the paper, which leaves it unspent: on unless switched off.
        keep_time_layers: leave the time layers in at 8 bits, for any sampler, instead of caching their features.
        entropies: makes `target_bits` the average of true bits: entropy instead of log2 of the number of levels.

    Raises:
        InputError: an unknown strategy, a table with rows missing, a target that cannot be met.
    """
    try:
        kind = Strategy(strategy)
    except ValueError:
        raise InputError(f"strategy: got {strategy!r}, wanted one of {', '.join(s.value for s in Strategy)}") from None
    choices = choices_of(table, keep_time_layers)
    if entropies is not None:
        choices = by_entropy(choices, table, entropies, keep_time_layers)
    if kind is Strategy.PAPER:
        bits, provenance = _paper(table, choices, target_bits, eta, fill_up)
    else:
        _check_range(choices, target_bits, _everywhere(choices, MIN_BITS), _everywhere(choices, MAX_BITS), kind)
        bits, proven = least_error(choices, choices.budget(target_bits))
        provenance = {"proven_optimal": proven}
    if entropies is not None:
        provenance = {"budget": "entropy", "true_bits": choices.average(bits), **provenance}
    return _recipe(table, choices, kind.value, target_bits, bits, provenance, keep_time_layers)


def uniform(table: SensitivityTable, bits: int, *, keep_time_layers: bool = False) -> Recipe:
    """The recipe with the same bits in every layer but conv_in and conv_out: what mixed precision is compared with."""
    check_bits(bits)
    choices = choices_of(table, keep_time_layers)
    return _recipe(table, choices, "uniform", None, _everywhere(choices, bits), {}, keep_time_layers)


def _paper(
    table: SensitivityTable, choices: Choices, target: float, eta: float, fill_up: bool
) -> tuple[Bits, dict[str, Any]]:
    drops = table.column("clip_drop", MEASURED_BITS[-1])
    bonus = _everywhere(choices, 0) if drops is None else clip_bonus(np.asarray(list(drops.values())))
    highest = _everywhere(choices, MAX_BITS) if fill_up else ABOVE_MEASURED + bonus
    _check_range(choices, target, MIN_BITS + bonus, highest, Strategy.PAPER)
    bits, threshold = search(choices, eta, bonus, target)
    filled = fill(choices, bits, choices.budget(target)) if fill_up else bits
    given = {name: int(extra) for name, extra in zip(choices.names, bonus, strict=True) if extra}
    raised = np.nonzero(filled > bits)[0]
    return filled, {
        "eta": eta,
        "threshold": threshold if math.isfinite(threshold) else None,
        "clip_bonus": given if drops is not None else "skipped: the table has no CLIP drop",
        "average_before_fill": choices.average(bits),
        "filled": {choices.names[i]: [int(bits[i]), int(filled[i])] for i in raised} if fill_up else "off",
    }


def _everywhere(choices: Choices, bits: int) -> Bits:
    return np.full(len(choices.names), bits, dtype=np.int64)


def _check_range(choices: Choices, target: float, lowest: Bits, highest: Bits, strategy: Strategy) -> None:
    low, high = choices.average(lowest), choices.average(highest)
    if not low * (1 - ROUNDING) <= target <= high * (1 + ROUNDING):
        raise InputError(
            f"target: got {target} bits on average, wanted {math.ceil(low * 1e4) / 1e4:.4f} to "
            f"{math.floor(high * 1e4) / 1e4:.4f} (what strategy {strategy.value} can reach with this table)"
        )


def _recipe(
    table: SensitivityTable,
    choices: Choices,
    strategy: str,
    target: float | None,
    bits: Bits,
    provenance: dict[str, Any],
    keep_time_layers: bool,
) -> Recipe:
    chosen = dict(zip(choices.names, (int(b) for b in bits), strict=True))
    kept = table.first_last | (table.removed if keep_time_layers else {})
    chosen.update(dict.fromkeys(kept, FIRST_LAST_BITS))
    weights = table.layers | table.first_last | table.removed
    features = 0 if keep_time_layers else table.feature_values
    return Recipe(
        model=table.model,
        source_sha256=table.sha256(),
        strategy=strategy,
        target_bits=target,
        average_bits=average_bits(weights, chosen, features),
        feature_values=features,
        bits=chosen,
        removed=[] if keep_time_layers else list(table.removed),
        weights=weights,
        provenance={
            "model_sha256": table.source_sha256,
            "sensitivity_method": table.method,
            "total_error": choices.error(bits),
            "extrapolated": [name for name in choices.names if chosen[name] > MEASURED_BITS[-1]],
            **provenance,
        },
    )
