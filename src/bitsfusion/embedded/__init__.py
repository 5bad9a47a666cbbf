"""The embedded models, in FP16, and the drawn worlds that they were trained on by `bitsfusion_lab.embedding`."""

from pathlib import Path

_HERE = Path(__file__).parent

PIPELINE_FOLDER = _HERE / "pipeline"
"""A Stable Diffusion pipeline of the quick world (`quick.QUICK`): what commands call "embedded"."""
SCORER_FOLDER = _HERE / "scorer"
"""Its CLIP model."""
GRID_PIPELINE_FOLDER = _HERE / "grid_pipeline"
"""The same of the grid world (`grid.GRID`)."""
GRID_SCORER_FOLDER = _HERE / "grid_scorer"
