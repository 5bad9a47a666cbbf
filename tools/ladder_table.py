"""A run's summary.json as the Markdown tables of docs/measured/embedded.md.

python tools/ladder_table.py runs/embedded_full/summary.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bitsfusion.io.texts import read_json

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def number(value: float | None, digits: int = 4) -> str:
    """`value` to so many digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def ladder(summary: dict[str, Any]) -> str:
    """A rung a row."""
    lines = [
        "| rung | bits | GenEval (95 %) | against FP | CLIP score | image MSE | teacher error | noise loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rung in summary["rungs"]:
        score, difference = rung["geneval"], rung["against_full_precision"]
        interval = f"{score['overall']:.3f} ({score['interval'][0]:.3f} to {score['interval'][1]:.3f})"
        less = "–"
        if difference:
            less = f"{difference['mean']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"
        figures = [number(rung[key]) for key in ("clip_score", "image_mse")]
        figures += [number(rung[key], 5) for key in ("noise_error", "noise_loss")]
        bits = "32" if rung["bits"] == 32 else f"{rung['bits']:.4f}"
        lines.append(f"| {rung['name']} | {bits} | {interval} | {less} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def tasks(summary: dict[str, Any]) -> str:
    """A rung a row, a task a column."""
    lines = ["| rung | " + " | ".join(TASKS) + " |", "|---" * 7 + "|"]
    for rung in summary["rungs"]:
        lines.append(f"| {rung['name']} | " + " | ".join(f"{rung['geneval']['tasks'][t]:.3f}" for t in TASKS) + " |")
    return "\n".join(lines)


def seeds(summary: dict[str, Any]) -> str:
    """GenEval, error to the teacher and noise loss of each training seed."""
    lines = ["| rung | seed | GenEval | teacher error | noise loss |", "|---|---|---|---|---|"]
    for rung in summary["rungs"]:
        for one in rung["per_seed"]:
            figures = f"{one['geneval']:.3f} | {one['noise_error']:.5f} | {one['noise_loss']:.5f}"
            lines.append(f"| {rung['name']} | {one['seed']} | {figures} |")
    return "\n".join(lines)


def sizes(summary: dict[str, Any]) -> str:
    """Bits and bytes of the packed UNet."""
    bits = summary["bits"]
    ratio = bits["bytes_fp16"] / bits["bytes_on_disk"]
    return (
        f"UNet: {bits['average']:.4f} bits a weight by Appendix H, {bits['true']:.4f} on disk; "
        f"{bits['bytes_fp16']:,} bytes in FP16, {bits['bytes_on_disk']:,} packed ({ratio:.2f} x smaller), "
        f"{bits['bytes_in_memory']:,} in memory."
    )


if __name__ == "__main__":
    content = read_json(Path(sys.argv[1]))
    print("\n\n".join([ladder(content), tasks(content), seeds(content), sizes(content)]))
