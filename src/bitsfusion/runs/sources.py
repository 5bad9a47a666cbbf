"""Training data as a config names it."""

from __future__ import annotations

from typing import Any

from bitsfusion.data.batches import TrainingData
from bitsfusion.data.captioned import CaptionedData
from bitsfusion.data.world.captions import Split
from bitsfusion.data.world_training import WorldData
from bitsfusion.runs.config import FolderSource, WorldSource

HELD_OUT_SEED = 1_000_003
"""Of the scenes that no student trains on."""


def training_data(source: WorldSource | FolderSource, pipeline: Any, split: Split) -> TrainingData:
    """The data of `source` for a pipeline's VAE and tokenizer.

    Args:
        source: the drawn world, or a folder of captioned images.
        pipeline: a StableDiffusionPipeline.
        split: of the drawn world's captions; "test" has scenes of its own too. A folder has one split only.
    """
    if isinstance(source, FolderSource):
        return CaptionedData(source.train_data_dir, pipeline.vae, pipeline.tokenizer, resolution=source.resolution)
    held_out = split != "train"
    return WorldData(
        pipeline.vae,
        pipeline.tokenizer,
        seed=HELD_OUT_SEED if held_out else 0,
        pool=min(source.pool, 1024) if held_out else source.pool,
        split=split,
        task_weights=source.task_weights,
    )
