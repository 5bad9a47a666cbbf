"""The grid world, on which methods can be told apart: scenes, captions in eight tasks, and an exact reader.

Its pipeline and scorer are made by `bitsfusion_lab.embedding.train_grid` and stored in FP16.
"""

from pathlib import Path

from bitsfusion.embedded.grid.captions import (
    RELATIONS,
    TASKS,
    Prompt,
    Requirement,
    Split,
    all_prompts,
    fits,
    prompt_set,
    sample_prompt,
    sample_scene,
)
from bitsfusion.embedded.grid.reader import UNREADABLE, read
from bitsfusion.embedded.grid.scene import (
    BACKGROUND,
    CELL_SIZE,
    CELLS,
    COLORS,
    GRID_SIZE,
    IMAGE_SIZE,
    MOST_OBJECTS,
    SHAPES,
    SIZES,
    Image,
    Object,
    Scene,
    draw,
    shape_mask,
)

PIPELINE_FOLDER = Path(__file__).parents[1] / "grid_pipeline"
SCORER_FOLDER = Path(__file__).parents[1] / "grid_scorer"
GUIDANCE = 3.0
"""Chosen on validation prompts, where 2 to 5 are not told apart."""

__all__ = [
    "BACKGROUND",
    "CELLS",
    "CELL_SIZE",
    "COLORS",
    "GRID_SIZE",
    "GUIDANCE",
    "IMAGE_SIZE",
    "MOST_OBJECTS",
    "PIPELINE_FOLDER",
    "RELATIONS",
    "SCORER_FOLDER",
    "SHAPES",
    "SIZES",
    "TASKS",
    "UNREADABLE",
    "Image",
    "Object",
    "Prompt",
    "Requirement",
    "Scene",
    "Split",
    "all_prompts",
    "draw",
    "fits",
    "prompt_set",
    "read",
    "sample_prompt",
    "sample_scene",
    "shape_mask",
]
