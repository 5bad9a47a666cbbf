"""Trains the grid world's model from nothing, stage by stage; each stage run again goes on where it was.

python -m bitsfusion_lab.embedding.train_grid unet --out work/unet --steps 22000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bitsfusion_lab.embedding.grid_world import GridWorld
from bitsfusion_lab.embedding.unet import train_unet


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["unet"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train_unet(GridWorld(), args.out, steps=args.steps or 22000, seed=args.seed)


if __name__ == "__main__":
    main()
