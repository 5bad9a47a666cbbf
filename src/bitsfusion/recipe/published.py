"""Recipes that come with the package: the published one, and what was carried over from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources

from bitsfusion.errors import InputError

PUBLISHED = ("sd15",)
"""Those of the paper."""

SHIPPED = (*PUBLISHED, "sdxl")
"""All of them, by name."""


def published_recipe(name: str) -> Mapping[str, int]:
    """Bits per layer of a recipe, conv_in and conv_out (8) included.

    `sd15` is the 1.99-bit recipe of Stable Diffusion v1.5's UNet (Appendix H). `sdxl` is that one carried over to SDXL
    base by what a layer is and how large (`tools/carry_recipe.py`), 1.99 bits with the time and size embeddings at 8;
    nothing of it was measured on SDXL.
    """
    return _read(name)["bits"]


def published_weights(name: str) -> Mapping[str, int]:
    """Weights per layer of the model that the recipe was made for, its time layers included."""
    return _read(name)["weights"]


def _read(name: str) -> dict[str, dict[str, int]]:
    if name not in SHIPPED:
        raise InputError(f"published recipe: got {name!r}, wanted one of {', '.join(SHIPPED)}")
    text = (resources.files("bitsfusion.recipe") / "recipes" / f"{name}.json").read_text(encoding="utf-8")
    content: dict[str, dict[str, int]] = json.loads(text)
    return content
