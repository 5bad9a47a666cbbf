"""Loading a packed pipeline as a user does, and drawing with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

import bitsfusion  # noqa: F401  registers with diffusers


def load(folder: Path, kind: type[DiffusionPipeline] = StableDiffusionPipeline, **options: Any) -> Any:
    loaded = kind.from_pretrained(folder, **options)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def images(pipeline: Any, steps: int = 4, **options: Any) -> np.ndarray:
    """[1, 8, 8, 3] float32 from one prompt and seed."""
    generator = torch.Generator().manual_seed(7)
    settings = {"num_inference_steps": steps, "generator": generator, "output_type": "np", "height": 8, "width": 8}
    made: np.ndarray = pipeline("a red cross", **{**settings, **options}).images
    return made


def inputs(unet: torch.nn.Module, step: int = 751, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, a time step that every folder of these tests covers, text states: in the model's dtype and device."""
    generator = torch.Generator().manual_seed(1)
    latents, states = torch.randn(batch, 4, 4, 4, generator=generator), torch.randn(batch, 5, 32, generator=generator)
    place: dict[str, Any] = {"dtype": unet.dtype, "device": unet.device}
    return latents.to(**place), torch.tensor(step, device=unet.device), states.to(**place)
