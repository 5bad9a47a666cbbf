"""The rows of a bench.json as a Markdown table.

python tools/bench_table.py bench.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from bitsfusion.io.schema import parse
from bitsfusion.io.texts import read_json
from bitsfusion_lab.bench.bench_file import BenchResult, BenchRow

COLUMNS = "method | MB on disk | MB in memory | bits | % dense | SQNR dB | output error | load s | peak MB | x dense"


def line(row: BenchRow) -> str:
    """One row; what was not measured is a dash, and why is said below the table."""
    dense = None if row.weights is None or row.weights_dense is None else 100 * row.weights_dense / row.weights
    cells = [
        (row.bytes_on_disk, ".0f", 1e6),
        (row.bytes_in_memory, ".0f", 1e6),
        (row.bits_on_disk, ".2f", 1),
        (dense, ".0f", 1),
        (row.sqnr_db, ".1f", 1),
        (row.output_error, ".3f", 1),
        (row.load_seconds, ".1f", 1),
        (row.peak_rss, ".0f", 1e6),
        (row.forward_ratio, ".2f", 1),
    ]
    return " | ".join(
        [row.name, *("–" if value is None else format(value / unit, form) for value, form, unit in cells)]
    )


def main() -> None:
    result = parse(BenchResult, read_json(Path(sys.argv[1])), sys.argv[1])
    print(f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}")
    for row in result.rows:
        print(f"| {line(row)} |")
    settings = result.settings
    print(
        f"\nBatch {settings.batch}, {settings.latent}x{settings.latent} latents, {settings.dtype.value}, "
        f"{settings.threads} threads, {result.machine['cpu']}; medians of {settings.repeats} forwards in turn."
    )
    for row in result.rows:
        if row.error is not None:
            print(f"\n{row.name}: {row.error}")


if __name__ == "__main__":
    main()
