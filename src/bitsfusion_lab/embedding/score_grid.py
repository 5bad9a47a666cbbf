"""Scores a pipeline on the grid world, strictly and task by task.

    python -m bitsfusion_lab.embedding.score_grid --split validation --guidance 2 3 4 5
    python -m bitsfusion_lab.embedding.score_grid --split test --images 4

A picture is right if it holds exactly what its prompt asks for. Settings are chosen on validation prompts and reported
on test prompts. The interval resamples prompts, since pictures of one prompt are alike.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bitsfusion.embedded import GRID_PIPELINE_FOLDER
from bitsfusion.embedded.grid import GRID, GUIDANCE
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline

_SEED = {"validation": 1_000_000, "test": 0}


def interval(right: npt.NDArray[np.float64], resamples: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean over prompts ([prompts, images] of 0 and 1)."""
    shares = right.mean(axis=1)
    drawn = np.random.default_rng(0).integers(len(shares), size=(resamples, len(shares)))
    low, high = np.quantile(shares[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=str(GRID_PIPELINE_FOLDER), help="A folder that diffusers loads.")
    parser.add_argument("--split", choices=sorted(_SEED), default="test")
    parser.add_argument("--per-task", type=int, default=75)
    parser.add_argument("--images", type=int, default=1, help="Pictures of each prompt.")
    parser.add_argument("--guidance", type=float, nargs="+", default=[GUIDANCE])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="Gets the figures, too.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipeline = load_pipeline(args.pipeline)
    asked = GRID.prompt_set(args.split, args.per_task)
    prompts = [prompt for prompt in asked for _ in range(args.images)]
    seeds = range(_SEED[args.split], _SEED[args.split] + len(prompts))
    figures = []
    for guidance in args.guidance:
        started = time.monotonic()
        pictures = generate_images(
            pipeline, [p.text for p in prompts], seeds, steps=args.steps, guidance=guidance, batch_size=64
        )
        right = np.array([GRID.shows(picture, p) for p, picture in zip(prompts, pictures, strict=True)])
        right = right.reshape(len(asked), args.images).astype(np.float64)
        tags = np.array([prompt.tag for prompt in asked])
        tasks = {tag: float(right[tags == tag].mean()) for tag in GRID.tasks}
        low, high = interval(right)
        figures.append(
            {
                "split": args.split,
                "guidance": guidance,
                "steps": args.steps,
                "pictures": len(prompts),
                "overall": float(right.mean()),
                "interval": [low, high],
                "tasks": tasks,
                "seconds": round(time.monotonic() - started),
            }
        )
        by_task = "  ".join(f"{tag} {share:.3f}" for tag, share in tasks.items())
        print(f"guidance {guidance:g}: {right.mean():.3f} ({low:.3f} to {high:.3f})  {by_task}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
