"""Where the paper's order holds here and where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitsfusion.evaluation.estimates import Difference, Verdict, verdicts
from bitsfusion.evaluation.rungs import ImageValue, RungScores, paired_difference

WORDS = {Verdict.BETTER: "holds", Verdict.WORSE: "reversed", Verdict.NONE: "not told apart"}


@dataclass(frozen=True)
class Order:
    """Two rows, the paper's better one first.

    Fields:
        better, worse: labels.
        published: by how much its CLIP score is better in the paper.
        measure: what they are compared by here: CLIP score, as in the paper, or the share of right images.
        mean, low, high: by how much it is better here, with the 95 % interval over prompts and training seeds.
        verdict: `holds` or `reversed` where that is shown (see `verdicts`, corrected for the pairs that are compared by
            this measure), otherwise `not told apart`.
    """

    better: str
    worse: str
    published: float
    measure: ImageValue
    mean: float
    low: float
    high: float

    verdict: str


def orders(
    published: Mapping[str, float | None],
    scores: Mapping[str, Sequence[RungScores]],
    cumulative: bool,
    measure: ImageValue,
) -> list[Order]:
    """The order of neighbouring rows where `cumulative`, otherwise of the paper's best row and each other one.

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
    found: list[tuple[str, str, float, Difference]] = []
    for one, other in pairs:
        better, worse = (one, other) if one[1] >= other[1] else (other, one)
        difference = paired_difference(scores[better[0]], scores[worse[0]], measure)
        if difference is not None:
            found.append((better[0], worse[0], better[1] - worse[1], difference))
    shown = verdicts([difference for *_, difference in found])
    return [
        Order(better, worse, gain, measure, change.mean, change.low, change.high, WORDS[verdict])
        for (better, worse, gain, change), verdict in zip(found, shown, strict=True)
    ]
