"""The recipe file: bits per layer, and where they come from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bitsfusion.architectures.layers import EMBEDDING_ROLES, LayerInfo, LayerRole
from bitsfusion.architectures.registry import layer_role
from bitsfusion.errors import InputError
from bitsfusion.io.atomic import remove_leftovers
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.schema import Checked, named, parse
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.numerics import MAX_BITS, MIN_BITS
from bitsfusion.packing.accounting import average_bits

Bits = Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS, strict=True)]


class Recipe(Checked):
    """Bits for every layer that is kept, and the time layers that are removed.

    Every layer of `weights` is either in `bits` (conv_in and conv_out have 8) or in `removed`.
    """

    schema_version: Literal[1] = 1
    model: str
    source_sha256: str | None
    """The hash of the sensitivity table it was made from; None for a published or uniform recipe."""
    strategy: str
    target_bits: float | None
    average_bits: float
    """By Appendix H: cached time features at 16 bits each, over the weights of all layers, removed ones included."""
    feature_values: int = Field(ge=0)
    bits: dict[str, Bits]
    removed: list[str]
    weights: dict[str, int]
    """Number of weights of every layer, removed ones included."""
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        both = [name for name in self.removed if name in self.bits]
        given = self.bits.keys() | set(self.removed)
        for wrong, text in (
            (both, "got bits for removed layers"),
            (sorted(given - self.weights.keys()), "got layers that weights does not know"),
            (sorted(self.weights.keys() - given), "got neither bits nor removal for"),
        ):
            if wrong:
                raise ValueError(f"{text}: {named(wrong)}")
        counted = average_bits(self.weights, self.bits, self.feature_values)
        if abs(counted - self.average_bits) > 1e-6:
            raise ValueError(f"got average_bits {self.average_bits}, wanted {counted:.6f} as the layers add up to")
        return self

    def sha256(self) -> str:
        """Names the content, whatever file it is in."""
        return sha256_json(self.model_dump(mode="json"))


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file.

    Raises:
        InputError: there is none, bits outside 1..8, unknown fields, or layers and averages that contradict.
    """
    return parse(Recipe, read_json(path), str(path))


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Writes the file, whole or not at all."""
    remove_leftovers(path)
    write_json(path, recipe.model_dump(mode="json"))


def check_fits(recipe: Recipe, layers: Mapping[str, LayerInfo], where: str = "recipe") -> None:
    """Passes if the recipe is for a model with these `layers` (see `model_layers`); see `check_layers`."""
    check_layers(recipe.weights, recipe.removed, layers, where)


def check_layers(
    weights: Mapping[str, int], removed: Collection[str], layers: Mapping[str, LayerInfo], where: str = "recipe"
) -> None:
    """Passes if a base model's recipe fits a model with these `layers`: the base itself or a fine-tune of it.

    The layers that it chooses bits for must be the same, with as many weights. Layers that have 8 bits anyway may
    differ: conv_in and conv_out in their size (inpainting has 9 input channels), and time and conditioning layers
    may be missing or added (LCM adds one).

    Args:
        weights: number of weights of every layer that the recipe knows.
        removed: those that it removes.
        where: begins the message.

    Raises:
        InputError: unknown layers, layers left out, removed layers that are no time layers, or other sizes.
    """
    unknown = [name for name in weights if name not in layers and layer_role(name) not in EMBEDDING_ROLES]
    _none(unknown, f"{where}: got layers that the model does not have")
    left_out = [name for name in layers if name not in weights and layer_role(name) not in EMBEDDING_ROLES]
    _none(left_out, f"{where}: leaves out layers of the model")
    permanent = [name for name in removed if layer_role(name) is not LayerRole.TIME]
    _none(permanent, f"{where}: removes layers that are no time layers")
    chosen = [name for name in weights if layer_role(name) is LayerRole.QUANTIZED]
    other = [name for name in chosen if layers[name].numel != weights[name]]
    _none(other, f"{where}: got another number of weights than the model has in")


def _none(names: list[str], message: str) -> None:
    if names:
        raise InputError(f"{message}: {named(names)}")
