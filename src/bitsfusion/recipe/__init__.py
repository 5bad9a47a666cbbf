"""Which layer gets how many bits (section 3.3): pure functions from a sensitivity table to a recipe."""

from bitsfusion.recipe.assign import Strategy, assign, uniform
from bitsfusion.recipe.schema import Recipe, check_fits, read_recipe, write_recipe

__all__ = ["Recipe", "Strategy", "assign", "check_fits", "read_recipe", "uniform", "write_recipe"]
