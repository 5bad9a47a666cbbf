"""The README's picture: the same prompts and seeds as each rung of a run draws them.

python tools/draw_ladder.py runs/embedded_full docs/ladder.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from bitsfusion.embedded import MODELS
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.evaluation.rungs import RungScores, load_images
from bitsfusion.io.atomic import atomic_path
from bitsfusion.io.texts import read_json

ROWS = {
    "full_precision": "Full precision\n32 bits",
    "init": "Init\n1.99 bits",
    "stage1-0": "Stage I\n1.99 bits",
    "stage2-0": "Stage II\n1.99 bits",
}


def _folded(text: str) -> str:
    """A caption over several short lines."""
    for word in (" and ", " left ", " right ", " above ", " below "):
        text = text.replace(word, f"\n{word.strip()} ")
    return text.replace("o of ", "o of\n").replace("g of ", "g of\n").replace("e of ", "e of\n")


def main(run: Path, out: Path) -> None:
    """Two prompts of each task across, a rung a row; a red frame marks an image that does not show what was asked."""
    config = read_json(run / "config.json")
    section, world = config["evaluation"], MODELS[config["model"]].world
    prompts = world_prompts(world, section["split"], section["per_task"], section["seed"])
    per_task = section["per_task"]
    columns = [task * per_task + index for task in range(len(world.tasks)) for index in range(2)]
    figure, axes = pyplot.subplots(len(ROWS), len(columns), figsize=(15, 5.4), dpi=100)
    for row, (folder, label) in enumerate(ROWS.items()):
        images, scores = load_images(run / "rungs" / folder), RungScores.load(run / "rungs" / folder)
        for column, index in enumerate(columns):
            axis = axes[row, column]
            axis.imshow(images[index], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            right = scores.passed is None or scores.passed[index]
            for spine in axis.spines.values():
                spine.set(edgecolor="#888888" if right else "#d62728", linewidth=0.5 if right else 2.5)
            if row == 0:
                axis.set_title(_folded(prompts.texts[index]), fontsize=7)
            if column == 0:
                axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.tight_layout(pad=0.4)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
