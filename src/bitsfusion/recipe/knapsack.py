"""The assignment of least total error within the bit budget: a multiple-choice knapsack, solved exactly.

Differs from the paper, which has no such assignment. The errors of single layers are assumed to add up.
"""

from __future__ import annotations

import math

import numpy as np

from bitsfusion.recipe.choices import Bits, Choices, Floats
from bitsfusion.recipe.threshold import fill

MAX_STATES = 1_000_000
"""Partial assignments kept at once; beyond it the most promising are kept and the result is not proven."""


def least_error(choices: Choices, budget: float) -> tuple[Bits, bool]:
    """The bits [L] of least summed error that cost at most `budget` bits, and whether that is proven.

    With a price p per bit, every assignment has error >= D(p) = sum_i min_b (e_ib + p c_ib) - p budget,
    and the sum of its layers' distances from their minimum is what it has above D. The price that lifts
    D highest leaves a narrow gap below a greedy assignment, so that most layers have one choice left;
    the others are enumerated, dropping partial assignments that cost more and err more than another.

    Args:
        budget: at least the cost of one bit everywhere.
    """
    price = _price(choices, budget)
    priced = choices.errors + price * choices.costs
    start: Bits = priced.argmin(axis=1) + 1
    greedy = fill(choices, start, budget)
    excess: Floats = priced - priced.min(axis=1, keepdims=True)
    gap = choices.error(greedy) - (priced.min(axis=1).sum() - price * budget)
    open_ = excess < gap
    free = [int(layer) for layer in np.argsort(-open_.sum(axis=1), kind="stable") if open_[layer].sum() > 1]

    cost = np.full(1, choices.cost(start) - sum(choices.costs[layer, start[layer] - 1] for layer in free))
    above = np.zeros(1)
    cheapest = sum(choices.costs[layer][open_[layer]].min() for layer in free)
    dearest = sum(choices.costs[layer][open_[layer]].max() for layer in free)
    trace = []
    proven = True
    for layer in free:
        columns = np.nonzero(open_[layer])[0]
        layer_costs = choices.costs[layer, columns]
        cheapest -= layer_costs.min()
        dearest -= layer_costs.max()
        costs = (cost[:, None] + layer_costs).ravel()
        aboves = (above[:, None] + excess[layer, columns]).ravel()
        unspent = np.maximum(budget - costs - dearest, 0)
        kept = np.nonzero((costs + cheapest <= budget) & (aboves + price * unspent < gap))[0]
        kept = kept[_undominated(costs[kept], aboves[kept] - price * costs[kept])]
        if len(kept) > MAX_STATES:
            proven = False
            kept = kept[np.argsort(aboves[kept], kind="stable")[:MAX_STATES]]
        cost, above = costs[kept], aboves[kept]
        trace.append((layer, columns, kept))
        if len(kept) == 0:  # nothing is better than the greedy assignment
            return greedy, proven

    best = start.copy()
    if free:
        state = int((above - price * cost).argmin())
        for layer, columns, kept in reversed(trace):
            state, column = divmod(int(kept[state]), len(columns))
            best[layer] = columns[column] + 1
    return (best, proven) if choices.error(best) <= choices.error(greedy) else (greedy, proven)


def _price(choices: Choices, budget: float) -> float:
    """The least price per bit at which every layer's best width together keeps the budget, by bisection."""
    low, high = 0.0, float(choices.errors.max() / np.diff(choices.costs, axis=1).min())
    for _ in range(200):
        middle = (low + high) / 2 if high > 4 * low else math.sqrt(low * high)
        if choices.cost((choices.errors + middle * choices.costs).argmin(axis=1) + 1) > budget:
            low = middle
        else:
            high = middle
    return high


def _undominated(costs: Floats, errors: Floats) -> Bits:
    """Indices, by rising cost, of the states with less error than every cheaper one."""
    order = np.lexsort((errors, costs))
    if len(order) == 0:
        return order
    best = np.minimum.accumulate(errors[order])
    keep = np.ones(len(order), dtype=bool)
    keep[1:] = errors[order][1:] < best[:-1]
    return order[keep]
