"""The flow model's table: full precision, mixed bits, ternary with an FP16 tail at equal bytes, other quantizers.

    python -m bitsfusion_lab.flow --out runs/flow

Every step is done once: after a kill the same command continues, and one with more seeds or steps keeps what is done.
OUT/table.md is written anew after every model. Peers that are not installed are named there
(pip install 'bitsfusion[peers]' orbitquant).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from bitsfusion.evaluation.rungs import RungScores
from bitsfusion.io.schema import parse
from bitsfusion_lab.flow.study import Arm, FlowStudy, Settings, order
from bitsfusion_lab.flow.table import write_tables


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    known = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in known.model_dump().items():
        if name != "seeds":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(known.seeds), help="of training")
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    study = FlowStudy(parse(Settings, given, "flow"), out)
    began = time.monotonic()

    def tell(score: RungScores) -> None:
        seed = "" if score.seed is None else f", seed {score.seed}"
        right = np.mean(score.passed or [False])
        sys.stderr.write(f"{time.monotonic() - began:6.0f} s  {score.name}{seed}: {right:.3f}\n")

    try:
        found = [study.full_precision()]
        tell(found[0])
        for one, seed in order(study.settings):
            found.append(study.arm(one, seed) if isinstance(one, Arm) else study.peer(one))
            tell(found[-1])
            text = write_tables(study, found)
        sys.stdout.write(text)
    finally:
        study.close()


if __name__ == "__main__":
    main()
