"""A table: rows of subjects, all made and scored alike; written as JSON, Markdown and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsfusion.evaluation.rungs import ImageValue, RungScores, known_mean, means, paired_difference
from bitsfusion.io.texts import write_json, write_text
from bitsfusion_lab.reproduction.figure import draw_table
from bitsfusion_lab.reproduction.frame import Frame
from bitsfusion_lab.reproduction.order import orders
from bitsfusion_lab.reproduction.subject import Subject
from bitsfusion_lab.study import FULL_PRECISION

SCHEMA_VERSION = 2
MEASURES: dict[ImageValue, str] = {"clip_scores": "CLIP score", "passed": "GenEval"}
"""What the order is judged by: the paper's own measure, and whether images show what was asked."""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Fields:
        label: as it is printed.
        subject: what is made.
        published: the paper's CLIP score of it, on SD-v1.5; None where it has none.
        missing: why it could not be made; then there is nothing else.
    """

    label: str
    subject: Subject | None
    published: float | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper: its number, title and rows, full precision's published CLIP score, and what to know."""

    number: int
    title: str
    rows: tuple[Row, ...]
    published_full_precision: float | None
    cumulative: bool = False
    """Whether each row is compared with the one above, too."""
    note: str = ""


def make_table(frame: Frame, table: Table) -> dict[str, Any]:
    """Makes and scores every row; writes table{N}.json, .md and .png after each: a killed run leaves what it had.

    Returns:
        The JSON's content.
    """
    whole = frame.scores(FULL_PRECISION, None, lambda: frame.model, {})
    dense = 16 * frame.weights // 8
    first = _measured("full precision", None, [whole], whole, None)
    first |= {"bits": 32.0, "bytes": None, "bytes_fp16": dense, "published": table.published_full_precision}
    lines, above = [first], None
    measured: dict[str, list[RungScores]] = {}
    for row in table.rows:
        if row.subject is None:
            lines.append({"label": row.label, "missing": row.missing, "published": row.published})
            continue
        seeds = frame.settings.seeds if row.subject.trained else frame.settings.seeds[:1]
        groups = [_one(frame, row.subject, seed) for seed in seeds]
        bits, size = row.subject.size(frame, seeds[0])
        line = _measured(row.label, row.subject.name, groups, whole, above if table.cumulative else None)
        line |= {"bits": bits, "bytes": size, "bits_per_weight": 8 * size / frame.weights, "published": row.published}
        line["seeds"] = list(seeds) if row.subject.trained else []
        lines.append(line)
        above, measured[row.label] = groups, [score for group in groups for score in group]
        _write(frame, table, lines, measured)
    return _write(frame, table, lines, measured)


def _one(frame: Frame, subject: Subject, seed: int) -> list[RungScores]:
    subject.make(frame, seed)
    return frame.scores(subject.name, seed, lambda: subject.load(frame, seed), subject.made(frame, seed))


def _measured(
    label: str,
    name: str | None,
    groups: Sequence[Sequence[RungScores]],
    reference: Sequence[RungScores],
    above: Sequence[Sequence[RungScores]] | None,
) -> dict[str, Any]:
    """Figures of one row; `groups` has a list for each training seed, with one entry for each guidance.

    The intervals are over prompts and training seeds (see `paired_difference`), the spreads over training seeds.
    """
    every = [score for group in groups for score in group]
    of_seeds = [{"geneval": _overall(group), **means(group)} for group in groups]
    line: dict[str, Any] = {"label": label, "name": name, "seconds": round(sum(score.seconds for score in every), 1)}
    for key in of_seeds[0]:
        values = [figures[key] for figures in of_seeds]
        known = [value for value in values if value is not None]
        line[key] = {
            "mean": float(np.mean(known)) if known else None,
            "spread": float(np.std(known, ddof=1)) if len(known) > 1 else None,
            "seeds": values,
        }
    line["against_full_precision"] = None if name is None else _compared(every, reference)
    line["against_row_above"] = (
        None if above is None else _compared(every, [score for group in above for score in group])
    )
    return line


def _compared(scores: Sequence[RungScores], others: Sequence[RungScores]) -> dict[str, float] | None:
    found = paired_difference(scores, others)
    return None if found is None else {"mean": found.mean, "low": found.low, "high": found.high}


def _overall(group: Sequence[RungScores]) -> float | None:
    """The share of right images; tasks have equally many, so that it is GenEval's mean of tasks."""
    shares = [float(np.mean(score.passed)) for score in group if score.passed is not None]
    return known_mean(list(shares))


def _write(
    frame: Frame, table: Table, lines: list[dict[str, Any]], measured: Mapping[str, Sequence[RungScores]]
) -> dict[str, Any]:
    published = {row.label: row.published for row in table.rows}
    content = {
        "schema_version": SCHEMA_VERSION,
        "table": table.number,
        "title": table.title,
        "note": table.note,
        "weights": frame.weights,
        "settings": {
            **frame.settings.model_dump(mode="json", exclude={"device"}),
            "sensitivity": None if frame.settings.sensitivity is None else frame.settings.sensitivity.name,
        },
        "prompts": len(frame.scoring.prompts.texts),
        "prompts_sha256": frame.scoring.prompts.sha256,
        "source_sha256": frame.workspace.source_sha256,
        "rows": lines,
        "order": [
            asdict(order) for measure in MEASURES for order in orders(published, measured, table.cumulative, measure)
        ],
    }
    stem = frame.path / f"table{table.number}"
    write_json(stem.with_suffix(".json"), content)
    write_text(stem.with_suffix(".md"), markdown(content))
    draw_table(content, stem.with_suffix(".png"))
    return content


def markdown(content: dict[str, Any]) -> str:
    """The table and, below it, how it was made."""
    settings, rows = content["settings"], content["rows"]
    cumulative = any(row.get("against_row_above") for row in rows)
    header = ["", "bits", "MB", "bits/weight", "GenEval", "against FP (95 %)"]
    header += ["against the row above"] if cumulative else []
    header += ["CLIP score", "image MSE", "teacher error", "paper's CLIP"]
    lines = [f"# Table {content['table']}: {content['title']}", "", _line(header), _line(["---"] * len(header))]
    for row in rows:
        published = "–" if row["published"] is None else f"{row['published']:.4f}"
        if "geneval" not in row:
            lines.append(_line([row["label"], row["missing"], *["–"] * (len(header) - 3), published]))
            continue
        own = row["bytes"] is not None
        cells = [
            row["label"],
            f"{row['bits']:.4g}",
            f"{(row['bytes'] if own else row['bytes_fp16']) / 1e6:.3f}" + ("" if own else " in FP16"),
            f"{row['bits_per_weight']:.3f}" if own else "16",
            _spread(row["geneval"], 3),
            _interval(row["against_full_precision"]),
            *([_interval(row["against_row_above"])] if cumulative else []),
            _spread(row["clip_score"], 4),
            _spread(row["image_mse"], 4),
            _spread(row["noise_error"], 5),
            published,
        ]
        lines.append(_line(cells))
    guidance = ", ".join(f"{value:g}" for value in settings["guidance"])
    lines += [
        "",
        f"{content['prompts']} held-out prompts, PNDM {settings['sampler_steps']} steps, guidance {guidance}; "
        f"{settings['steps']} steps of {settings['train_batch_size']} samples in Stage I, half of them in Stage II; "
        f"training seeds {', '.join(map(str, settings['seeds']))}. ± is the standard deviation over training seeds; "
        "intervals are over prompts and training seeds (of a single seed: over prompts). "
        "MB and bits a weight are of the weight file that was written, with all "
        "scales, palettes, biases, norms, cached time features and its header, over the weights of all layers.",
        "",
    ]
    if content["note"]:
        lines += [content["note"], ""]
    for measure, name in MEASURES.items():
        if found := [one for one in content["order"] if one["measure"] == measure]:
            lines += [f"The paper's order, by {name} here, corrected for {len(found)} comparisons (Holm):", ""]
            lines += [
                f"- {one['better']} over {one['worse']} (the paper's CLIP {one['published']:+.4f}): "
                f"**{one['verdict']}**, {_interval(one, 4 if measure == 'clip_scores' else 3)}"
                for one in found
            ]
            lines.append("")
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(figure: dict[str, Any], digits: int) -> str:
    if figure["mean"] is None:
        return "–"
    spread = "" if figure["spread"] is None else f" ± {figure['spread']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{spread}"


def _interval(difference: Mapping[str, Any] | None, digits: int = 3) -> str:
    if difference is None:
        return "–"
    mean, low, high = (f"{difference[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def table_path(out: Path, number: int) -> Path:
    """Where a table's Markdown is."""
    return out / f"table{number}.md"
