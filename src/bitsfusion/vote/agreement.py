"""How far voters agree on the pairs that several of them have seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bitsfusion.errors import InputError


@dataclass(frozen=True)
class Agreement:
    """How far the voters agree, over the pairs with two votes or more.

    Fields:
        pairs: how many those are.
        share: the mean over them of the share of their pairs of voters who chose the same picture; None without any.
        kappa: Fleiss' kappa, (share - chance) / (1 - chance), where chance is what the same shares of A and B over all
            votes would give by luck: 1 is full agreement, 0 that of coins. None where every vote is for one side.
    """

    pairs: int
    share: float | None
    kappa: float | None


def agreement(counts: Iterable[tuple[int, int]]) -> Agreement:
    """The agreement from each pair's votes for A and for B; pairs with fewer than two are left out.

    Fleiss (1971) has the same number of voters at every item; here, as is usual, each item weighs the same,
    however many voters it has.

    Raises:
        InputError: a negative count.
    """
    seen = [(a, b) for a, b in counts if a + b >= 2]
    if any(a < 0 or b < 0 for a, b in seen):
        raise InputError("agreement: got a negative number of votes")
    if not seen:
        return Agreement(0, None, None)
    share = sum((a * (a - 1) + b * (b - 1)) / ((a + b) * (a + b - 1)) for a, b in seen) / len(seen)
    for_a, total = sum(a for a, _ in seen), sum(a + b for a, b in seen)
    chance = (for_a / total) ** 2 + (1 - for_a / total) ** 2
    return Agreement(len(seen), share, None if for_a in (0, total) else (share - chance) / (1 - chance))
