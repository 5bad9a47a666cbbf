"""How far two sensitivity files agree: rank correlation of their errors over the layers, for each bit width.

python tools/rank_correlation.py runs/demo/sensitivity.json runs/embedded_full/sensitivity.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from bitsfusion.sensitivity.correlation import correlate_tables
from bitsfusion.sensitivity.table import read_table

tables = [read_table(Path(name)) for name in sys.argv[1:3]]
print("| bits | Spearman | Pearson | layers |\n|---|---|---|---|")
for bits, found in correlate_tables(*tables).items():
    print(f"| {bits} | {found.spearman:.3f} | {found.pearson:.3f} | {found.layers} |")
seconds = [sum(row.seconds for row in table.rows) for table in tables]
for table, spent in zip(tables, seconds, strict=True):
    print(f"\n{table.method}: {spent:.0f} s for {len(table.rows)} candidates", end="")
print(f"; {max(seconds) / min(seconds):.0f} x")
