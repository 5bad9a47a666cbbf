"""Where the paper's order holds here and where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitsfusion.evaluation.rungs import ImageMeasure, RungScores, paired_difference


@dataclass(frozen=True)
class Order:
    """Two rows, the paper's better one first.

    Fields:
        better, worse: labels.
        published: by how much its CLIP score is better in the paper.
        measure: what they are compared by here: CLIP score, as in the paper, or the share of right images.
        mean, low, high: by how much it is better here, with the paired 95 % interval.
    """

    better: str
    worse: str
    published: float
    measure: ImageMeasure
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`holds` or `reversed` where the interval excludes zero, otherwise `not told apart`."""
        return "holds" if self.low > 0 else "reversed" if self.high < 0 else "not told apart"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "verdict": self.verdict}


def orders(
    published: Mapping[str, float | None],
    scores: Mapping[str, Sequence[RungScores]],
    cumulative: bool,
    measure: ImageMeasure,
) -> list[Order]:
    """Of neighbouring rows where `cumulative`, otherwise of the paper's best row and each other one.

    Args:
        published: the paper's CLIP score of each row, by its label, in order; rows without one are passed over.
        scores: of each row that was measured, all training seeds together.
        measure: what they are compared by.
    """
    known = [(label, score) for label, score in published.items() if score is not None and label in scores]
    if not known:
        return []
    best = max(known, key=lambda row: row[1])
    pairs = list(zip(known[1:], known, strict=False)) if cumulative else [(best, row) for row in known if row != best]
    found = []
    for one, other in pairs:
        better, worse = (one, other) if one[1] >= other[1] else (other, one)
        difference = paired_difference(scores[better[0]], scores[worse[0]], measure)
        if difference is not None:
            found.append(Order(better[0], worse[0], better[1] - worse[1], measure, **difference))
    return found
