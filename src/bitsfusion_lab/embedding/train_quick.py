"""Trains the quick world's model from nothing and writes it into the package.

A stage that is run again continues where it was; the first two do not need each other and may run side by side:

    python -m bitsfusion_lab.embedding.train_quick unet   --work work/quick
    python -m bitsfusion_lab.embedding.train_quick vae    --work work/quick
    python -m bitsfusion_lab.embedding.train_quick scorer --work work/quick --seed 1
    python -m bitsfusion_lab.embedding.train_quick export --work work/quick --out src/bitsfusion/embedded

The weights that the package brings were made by an earlier form of these stages: its text encoder came from a CLIP
training (1,500 steps), and relations were asked for only in the last 4,000 of 15,000 steps.
"""

from __future__ import annotations

from bitsfusion_lab.embedding.quick_world import TrainedQuickWorld
from bitsfusion_lab.embedding.stages import run_stages

STEPS = {"unet": 15000, "vae": 3000, "scorer": 1500}

if __name__ == "__main__":
    run_stages(TrainedQuickWorld(), str(__doc__), STEPS, ("pipeline", "scorer"))
