"""Recipes that were published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources

from bitsfusion.errors import InputError

PUBLISHED = ("sd15",)


def published_recipe(name: str) -> Mapping[str, int]:
    """Bits per layer of a published recipe, conv_in and conv_out (8) included.

    `sd15` is the 1.99-bit recipe of Stable Diffusion v1.5's UNet (Appendix H).
    """
    return _read(name)["bits"]


def published_weights(name: str) -> Mapping[str, int]:
    """Weights per layer of the model that the recipe was made for, its time layers included."""
    return _read(name)["weights"]


def _read(name: str) -> dict[str, dict[str, int]]:
    if name not in PUBLISHED:
        raise InputError(f"published recipe: got {name!r}, wanted one of {', '.join(PUBLISHED)}")
    text = (resources.files("bitsfusion.recipe") / "recipes" / f"{name}.json").read_text(encoding="utf-8")
    content: dict[str, dict[str, int]] = json.loads(text)
    return content
