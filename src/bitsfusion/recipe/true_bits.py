"""What a layer costs on disk: the entropy of its levels instead of their number.

Differs from the paper, which counts log2(2^b + 1) bits a weight (Appendix H). Levels are not equally likely: for
normal weights the entropy is 3 to 10 % below that, and a packed file is as large as the entropy says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bitsfusion.architectures.layers import FIRST_LAST_BITS
from bitsfusion.errors import InputError
from bitsfusion.io.schema import named
from bitsfusion.numerics import MAX_BITS
from bitsfusion.packing.accounting import FEATURE_BITS
from bitsfusion.recipe.choices import Choices
from bitsfusion.sensitivity.table import SensitivityTable

Entropies = Mapping[str, Sequence[float]]
"""Every layer that can stay, and its entropy in bits a weight at 1, 2 .. 8 bits."""

LEAST_STEP = 1e-6
"""Bits a weight that another bit costs at least: a layer of zeros has no entropy, and its widths must be told apart."""


def by_entropy(choices: Choices, table: SensitivityTable, entropies: Entropies, keep_time_layers: bool) -> Choices:
    """`choices` with the entropies as costs.

    Raises:
        InputError: a layer has no entropies, or not one for each bit width.
    """
    kept = table.first_last | (table.removed if keep_time_layers else {})
    missing = [name for name in [*choices.names, *kept] if len(entropies.get(name, ())) != MAX_BITS]
    if missing:
        raise InputError(f"true bits: got no entropies at 1 to {MAX_BITS} bits of {named(missing)}")
    rates = np.asarray([entropies[name] for name in choices.names], dtype=np.float64)
    steps = LEAST_STEP * np.arange(MAX_BITS)
    rates = np.maximum.accumulate(rates - steps, axis=1) + steps
    fixed = sum(entropies[name][FIRST_LAST_BITS - 1] * numel for name, numel in kept.items())
    features = 0 if keep_time_layers else FEATURE_BITS * table.feature_values
    return dataclasses.replace(choices, costs=choices.weights[:, None] * rates, fixed_bits=fixed + features)
