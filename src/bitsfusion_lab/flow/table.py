"""The table of a study: a method a row, its training seeds together; counting apart from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitsfusion.evaluation.estimates import Difference, difference, estimate, trained_difference, verdicts
from bitsfusion.evaluation.rungs import RungScores
from bitsfusion.io.texts import write_json, write_text
from bitsfusion_lab.flow.peers import PEERS
from bitsfusion_lab.flow.study import ARMS, FlowStudy, Settings
from bitsfusion_lab.study import FULL_PRECISION

COUNTING = "counting"
TITLES = {FULL_PRECISION: "full precision", **{one.name: one.title for one in (*ARMS, *PEERS)}}
COMPARED = ("mixed_trained", "ternary_trained")


@dataclass(frozen=True)
class Scored:
    """A method's scores, one a training seed, on prompts of these tasks."""

    name: str
    scores: Sequence[RungScores]
    tags: Sequence[str]

    def right(self, part: str | None = None) -> npt.NDArray[np.float64]:
        """[training seeds, prompts] 0 or 1; of counting alone, or of the "rest"."""
        values = np.asarray([score.passed for score in self.scores], dtype=np.float64)
        chosen = np.asarray([part is None or (tag == COUNTING) == (part == COUNTING) for tag in self.tags])
        return values[:, chosen]


def change(one: Scored, other: Scored, part: str | None = None) -> Difference:
    """How much more often `one` is right, over prompts, and over training seeds where there are some."""
    ours, theirs = one.right(part), other.right(part)
    if len(ours) == len(theirs) == 1:
        return difference(ours[0], theirs[0])
    return trained_difference(ours - theirs)


def write_tables(study: FlowStudy, found: Sequence[RungScores]) -> str:
    """Writes table.md and table.json of what is scored so far; the text."""
    tags = [prompt.tag for prompt in study.scoring.prompts.asked]
    rows = [Scored(name, [score for score in found if score.name == name], tags) for name in TITLES]
    rows = [row for row in rows if row.scores]
    original, others = rows[0], rows[1:]
    changes = [change(row, original) for row in others]
    pair = [next((row for row in rows if row.name == name), None) for name in COMPARED]
    paired: list[tuple[str, Difference]] = []
    if pair[0] is not None and pair[1] is not None and len(pair[0].scores) == len(pair[1].scores):
        parts = {"all tasks": None, "counting": COUNTING, "the rest": "rest"}
        paired = [(title, change(pair[0], pair[1], part)) for title, part in parts.items()]
    shown = verdicts([*changes, *(one for _, one in paired)])
    lines = [
        "| | bytes | GenEval | seeds | counting | the rest | against full precision | | image MSE |",
        "|---|---|---|---|---|---|---|---|---|",
        _row(study, original, None, ""),
        *(_row(study, row, one, verdict.value) for row, one, verdict in zip(others, changes, shown, strict=False)),
    ]
    if paired:
        lines += ["", f"| {TITLES[COMPARED[0]]}, less {TITLES[COMPARED[1]]} | | |", "|---|---|---|"]
        for (title, one), verdict in zip(paired, shown[len(changes) :], strict=True):
            lines.append(f"| {title} | {_signed(one)} | {verdict.value} |")
    missing = [f"{peer.title} ({peer.library} is not installed)" for peer in PEERS if not peer.installed]
    lines += ["", _settings(study.settings, len(tags))]
    if missing:
        lines.append(f"Not there: {', '.join(missing)}.")
    text = "\n".join(lines) + "\n"
    write_text(study.path / "table.md", text)
    write_json(
        study.path / "table.json",
        {
            "settings": study.settings.model_dump(mode="json"),
            "rows": [
                {"name": row.name, "bytes": _bytes(study, row), "right": row.right().mean(1).tolist()} for row in rows
            ],
        },
    )
    return text


def _row(study: FlowStudy, row: Scored, one: Difference | None, verdict: str) -> str:
    right = row.right()
    overall = estimate(right.mean(0))
    each = ", ".join(f"{value:.3f}" for value in right.mean(1)) if len(right) > 1 else ""
    mse = [score.image_mse for score in row.scores if score.image_mse is not None]
    cells = [
        TITLES[row.name],
        f"{_bytes(study, row):,}",
        f"{overall.mean:.3f} ({overall.low:.3f} to {overall.high:.3f})",
        each,
        f"{row.right(COUNTING).mean():.3f}",
        f"{row.right('rest').mean():.3f}",
        "" if one is None else _signed(one),
        verdict,
        f"{np.mean(mse):.5f}" if mse else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _bytes(study: FlowStudy, row: Scored) -> int:
    return round(float(np.mean([study.bytes(row.name, score.seed) for score in row.scores])))


def _signed(one: Difference) -> str:
    return f"{one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})"


def _settings(settings: Settings, prompts: int) -> str:
    return (
        f"{prompts} test prompts, a picture each, {settings.sampler_steps} steps; mixed: {settings.bits:g} bits; "
        f"trained: Stage I, {settings.steps} steps of {settings.batch_size}, {settings.learning_rate:g} cosine, seeds "
        f"{', '.join(map(str, settings.seeds))}; intervals of 95 % over prompts and seeds; verdicts by Holm."
    )
