"""One component of a pipeline on disk, loaded by its class."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from bitsfusion.pipelines.folder import Component


def load_component(component: Component, dtype: torch.dtype = torch.float32) -> Any:
    """One component from its own folder, on the CPU; whatever its class raises."""
    libraries = {"diffusers": "diffusers", "transformers": "transformers"}
    module = importlib.import_module(libraries.get(component.library, f"diffusers.pipelines.{component.library}"))
    kind = getattr(module, component.class_name)
    if component.weights is None:
        return kind.from_pretrained(component.folder)
    return kind.from_pretrained(component.folder, dtype=dtype, variant=component.variant)
