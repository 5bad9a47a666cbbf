"""The embedded model: a Stable Diffusion pipeline trained on the drawn world, and a CLIP scorer for it.

Both are made by `bitsfusion_lab.embedding.train_quick` and stored in FP16.
"""

from pathlib import Path

PIPELINE_FOLDER = Path(__file__).parent / "pipeline"
SCORER_FOLDER = Path(__file__).parent / "scorer"
