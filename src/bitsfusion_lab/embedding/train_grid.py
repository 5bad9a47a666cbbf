"""Trains the grid world's model from nothing and writes it into the package.

A stage that is run again continues where it was; the first two do not need each other and may run side by side:

    python -m bitsfusion_lab.embedding.train_grid unet   --work work/grid
    python -m bitsfusion_lab.embedding.train_grid vae    --work work/grid
    python -m bitsfusion_lab.embedding.train_grid scorer --work work/grid --seed 1
    python -m bitsfusion_lab.embedding.train_grid export --work work/grid --out src/bitsfusion/embedded

The UNet that the package brings was trained in three pieces (docs/measured/grid.md): captions and questions
were added on the way.
"""

from __future__ import annotations

from bitsfusion_lab.embedding.grid_world import TrainedGridWorld
from bitsfusion_lab.embedding.stages import run_stages

STEPS = {"unet": 24500, "vae": 3000, "scorer": 2000}

if __name__ == "__main__":
    run_stages(TrainedGridWorld(), str(__doc__), STEPS, ("grid_pipeline", "grid_scorer"))
