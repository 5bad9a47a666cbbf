"""The verdicts of a page of tables whose intervals are over prompts alone, made to speak of new trainings too.

python tools/table_verdicts.py docs/measured/tables.md

Reads each list "- A over B (...): **verdict**, mean (low to high)" and the table above it, and prints the list anew.
The variance is that of the printed interval over prompts plus that of both rows' training seeds (the ± of the table,
three seeds), with Satterthwaite's degrees of freedom; p-values are corrected for the list's length (Holm). What single
images add to the spread of seeds is counted twice: on the side of no verdict.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from scipy.stats import t as student_t

from bitsfusion.evaluation.estimates import Difference, verdicts
from bitsfusion_lab.reproduction.order import WORDS

PROMPTS, SEEDS = 300, 3
LINE = re.compile(r"(.+?) over (.+?) \((the paper's CLIP [^)]*)\): \*\*([a-z ]+)\*\*, (\S+) \((\S+) to (\S+)\)$")


def spreads(rows: list[list[str]], column: str) -> dict[str, float]:
    """The ± of each row's `column`, by the row's name."""
    place = rows[0].index(column)
    found = {}
    for row in rows[2:]:
        spread = re.search(r"± ([\d.]+)", row[place])
        found[row[0]] = float(spread[1]) if spread else 0.0
    return found


def corrected(mean: float, low: float, high: float, seeds: list[float]) -> Difference:
    """A difference over prompts and training seeds."""
    parts = [((high - low) / 2 / float(student_t.ppf(0.975, PROMPTS - 1))) ** 2, *(sd**2 / SEEDS for sd in seeds)]
    freedom = [PROMPTS - 1] + [SEEDS - 1] * len(seeds)
    variance = sum(parts)
    left = variance**2 / sum(part**2 / free for part, free in zip(parts, freedom, strict=True))
    half = float(student_t.ppf(0.975, left)) * variance**0.5
    p = float(2 * student_t.sf(abs(mean) / variance**0.5, left))
    return Difference(mean, mean - half, mean + half, p, PROMPTS, SEEDS)


def main() -> None:
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    rows: list[list[str]] = []
    column = ""
    for block in text.split("\n\n"):
        if block.startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        column = "CLIP score" if "by CLIP score" in block else "GenEval" if block.startswith("By GenEval") else column
        items = [" ".join(item.split()) for item in re.split(r"^- ", block, flags=re.MULTILINE)[1:]]
        matched = [found for item in items if (found := LINE.match(item))]
        if not matched:
            continue
        spread = spreads(rows, column)
        known = []
        for one in matched:
            mean, low, high = (float(one[place]) for place in (5, 6, 7))
            known.append(corrected(mean, low, high, [spread[one[1]], spread[one[2]]]))
        print(f"\nBy {column}:\n")
        digits = 4 if column == "CLIP score" else 3
        for one, change, verdict in zip(matched, known, verdicts(known), strict=True):
            mean, low, high = (f"{value:+.{digits}f}" for value in (change.mean, change.low, change.high))
            print(f"- {one[1]} over {one[2]} ({one[3]}): **{WORDS[verdict]}**, {mean} ({low} to {high})")


if __name__ == "__main__":
    main()
