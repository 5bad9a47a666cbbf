"""A recipe as a user names it: a file, one that is shipped, or the same bits everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bitsfusion.architectures.layers import FIRST_LAST_BITS, LayerInfo, LayerRole
from bitsfusion.errors import InputError
from bitsfusion.recipe.published import SHIPPED, published_recipe, published_weights
from bitsfusion.recipe.schema import check_fits, check_layers, read_recipe

UNIFORM = "uniform:"


def is_file(recipe: str) -> bool:
    """Whether `recipe` names a file."""
    return recipe not in SHIPPED and not recipe.startswith(UNIFORM)


def recipe_bits(recipe: str, layers: Mapping[str, LayerInfo]) -> dict[str, int]:
    """Bits for `layers` (see `model_layers`); time and conditioning layers only where the recipe has them.

    Args:
        recipe: a recipe file, `sd15` or `sdxl` (see `published_recipe`), or `uniform:N` for N bits in every
            layer, but 8 in conv_in and conv_out.

    Raises:
        InputError: no such recipe, or one that does not fit these layers (names them).
    """
    if recipe.startswith(UNIFORM):
        bits: Mapping[str, int] = _uniform(recipe, layers)
    elif recipe in SHIPPED:
        check_layers(published_weights(recipe), (), layers, f"recipe {recipe}")
        bits = published_recipe(recipe)
    elif Path(recipe).is_file():
        read = read_recipe(Path(recipe))
        check_fits(read, layers, recipe)
        bits = read.bits
    else:
        known = ", ".join(SHIPPED)
        raise InputError(f"recipe: got {recipe!r}, wanted a recipe file, uniform:N, or one of {known}")
    return {name: count for name, count in bits.items() if name in layers}


def _uniform(recipe: str, layers: Mapping[str, LayerInfo]) -> dict[str, int]:
    count = recipe.removeprefix(UNIFORM)
    if count not in "12345678" or len(count) != 1:
        raise InputError(f"recipe: got {recipe!r}, wanted uniform:N with N from 1 to 8")
    chosen = {LayerRole.QUANTIZED: int(count), LayerRole.FIRST_LAST: FIRST_LAST_BITS}
    return {name: chosen[layer.role] for name, layer in layers.items() if layer.role in chosen}
