"""The paper's assignment (section 3.3, Algorithm 1): bits by a threshold on the size-weighted error."""

from __future__ import annotations

import math

import numpy as np

from bitsfusion.recipe.choices import Bits, Choices, Floats
from bitsfusion.sensitivity.table import MEASURED_BITS

ABOVE_MEASURED = 4
"""Bits of a layer that passes the threshold at none of the measured widths."""

CLIP_PERCENTILES = (90, 95, 98)
"""A layer gets one more bit for each of these that its CLIP drop at 3 bits exceeds."""


def scores(choices: Choices, eta: float) -> Floats:
    """S = M N^-eta: the error at each measured width, discounted for large layers; [L, 3]."""
    weighted: Floats = choices.errors[:, : len(MEASURED_BITS)] * choices.weights[:, None] ** -eta
    return weighted


def bits_at(table: Floats, threshold: float) -> Bits:
    """The smallest of 1, 2, 3 bits whose score ([L, 3]) is below `threshold`, else 4; [L]."""
    below = table < threshold
    bits: Bits = np.where(below.any(axis=1), below.argmax(axis=1) + MEASURED_BITS[0], ABOVE_MEASURED)
    return bits


def clip_bonus(drops: Floats) -> Bits:
    """+1, +2, +3 bits for the layers whose CLIP drop ([L]) is above its 90th, 95th, 98th percentile; [L]."""
    limits = np.percentile(drops, CLIP_PERCENTILES)
    bonus: Bits = (drops[:, None] > limits).sum(axis=1)
    return bonus


def search(choices: Choices, eta: float, bonus: Bits, target: float) -> tuple[Bits, float]:
    """The assignment with the largest average that is at most `target`, and its threshold S_o.

    A higher threshold never gives a layer more bits, so the average falls as S_o grows; it changes only
    where S_o passes a layer's score, and those are searched by halving.

    Returns:
        bits [L] and S_o; S_o is infinite where every layer gets one bit. Where even that is above the target,
        it is still returned: the caller compares.
    """
    table = scores(choices, eta)
    budget = choices.budget(target)
    thresholds = np.append(np.unique(table), math.inf)
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if choices.cost(bits_at(table, thresholds[middle]) + bonus) <= budget:
            high = middle
        else:
            low = middle + 1
    threshold = float(thresholds[low])
    return bits_at(table, threshold) + bonus, threshold


def fill(choices: Choices, bits: Bits, budget: float) -> Bits:
    """Spends what `bits` ([L]) leaves of `budget` (bits) on the raises that save most error per bit; [L].

    Differs from the paper: layers are coarse, and the threshold alone stops short of the target.
    """
    filled = bits.copy()
    rows = np.arange(len(bits))
    widths = np.arange(1, choices.costs.shape[1] + 1)
    left = budget - choices.cost(filled)
    while True:
        price = choices.costs - choices.costs[rows, filled - 1][:, None]
        saving = choices.errors[rows, filled - 1][:, None] - choices.errors
        possible = (widths > filled[:, None]) & (price <= left) & (saving > 0)
        if not possible.any():
            return filled
        gain = np.where(possible, saving / np.where(price > 0, price, 1), -math.inf)
        layer, column = np.unravel_index(int(gain.argmax()), gain.shape)
        left -= price[layer, column]
        filled[layer] = column + 1
