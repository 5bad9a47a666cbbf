"""Training data as a config names it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from bitsfusion.data.batches import TrainingData
from bitsfusion.data.cached import cached_data
from bitsfusion.data.drawn import DrawnData
from bitsfusion.data.hf_dataset import HfDataset
from bitsfusion.data.image_folder import ImageFolder
from bitsfusion.data.records import ImageSource
from bitsfusion.data.tar_shards import TarShards
from bitsfusion.devices import placed, resolve
from bitsfusion.diffusion.conditioning import Conditioner, conditioner_of
from bitsfusion.embedded import world_of
from bitsfusion.embedded.world import Split
from bitsfusion.io.work_folder import cache_folder
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.runs.config import DataSource, FolderSource, HfDatasetSource, WorldSource

HELD_OUT_SEED = 1_000_003
"""The seed of the scenes that no student trains on."""


def training_data(
    source: DataSource,
    pipeline: Any,
    split: Split,
    progress: ProgressSink = SILENT,
    denoiser: nn.Module | None = None,
    device: torch.device | None = None,
) -> TrainingData:
    """The data of `source` for a pipeline's VAE and prompts.

    Args:
        source: the drawn world, or captioned images: these are encoded into a cache first, unless they are there
            already.
        pipeline: gives the VAE and the tokenizers.
        split: of the drawn world's captions; "test" has scenes of its own too. Captioned images have one split only.
        progress: is told about the encoding, as step "data".
        denoiser: says what it is given, where the pipeline has none.
        device: where the VAE encodes, `devices.resolve()` unless given; it is afterwards where it was.
    """
    conditioner = conditioner_of(pipeline, denoiser)
    with placed(pipeline.vae, device or resolve()):
        if not isinstance(source, WorldSource):
            return _captioned(source, pipeline.vae, conditioner, progress)
        held_out = split != "train"
        return DrawnData(
            pipeline.vae,
            conditioner,
            seed=HELD_OUT_SEED if held_out else 0,
            pool=min(source.pool, 1024) if held_out else source.pool,
            split=split,
            task_weights=source.task_weights,
            world=world_of(source.world),
        )


def image_source(source: DataSource) -> ImageSource:
    """The captioned images that `source` names.

    Raises:
        InputError: they are not there, or the library that reads them is not.
    """
    if isinstance(source, FolderSource):
        return ImageFolder(source.train_data_dir)
    if isinstance(source, HfDatasetSource):
        return HfDataset(
            source.dataset_name,
            config=source.dataset_config_name,
            revision=source.revision,
            split=source.split,
            image_column=source.image_column,
            caption_column=source.caption_column,
            streaming=source.streaming,
        )
    assert not isinstance(source, WorldSource)
    return TarShards(source.train_shards_path_or_url)


def _captioned(source: Any, vae: Any, conditioner: Conditioner, progress: ProgressSink) -> TrainingData:
    began, encoded = time.monotonic(), False

    def report(done: int, total: int | None) -> None:
        nonlocal encoded
        encoded = True
        progress.update("data", done, total or done)

    data = cached_data(
        image_source(source),
        vae,
        conditioner,
        source.latents_cache_dir or cache_folder("latents"),
        resolution=source.resolution,
        dtype=source.latents_dtype,
        seed=source.seed,
        max_bad_samples=source.max_bad_samples,
        max_samples=source.max_samples,
        progress=report,
    )
    if encoded:
        progress.finish("data", time.monotonic() - began)
    return data
