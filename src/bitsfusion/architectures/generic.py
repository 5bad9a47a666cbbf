"""Image transformers of diffusers that have no family of their own: packed by what the class says of itself.

Every linear layer and 2D convolution is packed. Ends, at 8 bits, are the layers outside the repeated blocks, and those
in them that the class's `_skip_layerwise_casting_patterns` names: diffusers keeps these out of 8-bit storage. The
pattern `norm` is not heeded inside blocks: it names modulation too, which gets the recipe's bits as in every family.
Where it is known to see the time step alone, features stand for it.
Nothing is known of the forward's arguments, so that such models are packed, loaded, drawn with and calibrated by their
own pipeline's calls, but not trained.
"""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitsfusion.architectures.base import Denoiser
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.timing import OTHERS, Timing
from bitsfusion.architectures.transformer import ENDS, transformer_kind
from bitsfusion.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_NAME = re.compile(r"[A-Za-z0-9]{1,64}2DModel")
_MODULES = "diffusers.models.transformers."
_PARTS = ("Transformer2DModel", "DreamLiteTransformer2DModel")
"""Blocks of convolutional UNets, not models that a sampler calls."""

_BLOCK = re.compile(r"^\w+\.\d+\.|(^|\.)\w*(blocks|layers)(\.\w+)?\.\d+\.")
_SKIPPED, _NORMS = "_skip_layerwise_casting_patterns", "norm"


@dataclass(frozen=True)
class GenericTransformer(Denoiser):
    """A transformer known by its class alone.

    Fields:
        skipped: the class's `_skip_layerwise_casting_patterns` but `norm`.
        steps: see `timing`.
    """

    skipped: tuple[str, ...] = ()
    steps: Timing | None = None

    @property
    def timing(self) -> Timing | None:
        return self.steps

    @property
    def note(self) -> str:
        modulation = "modulation keeps its bits, " if self.steps is None else ""
        return (
            f"{self.name} has no family of its own and is taken as a generic transformer: layers outside its blocks "
            f"have 8 bits, {modulation}and it is not trained"
        )

    def role(self, name: str) -> LayerRole:
        end = _BLOCK.search(name) is None or ENDS.search(name) or any(re.search(each, name) for each in self.skipped)
        return LayerRole.FIRST_LAST if end else LayerRole.QUANTIZED

    def kind(self, name: str) -> str:
        return transformer_kind(name)

    def modules(self, model: nn.Module) -> dict[str, Any]:
        """The same as of any family.

        Raises:
            InputError: most weights are elsewhere, such as in a mixture's experts: a packed folder would be larger.
        """
        found = super().modules(model)
        packed = sum(self.layer_info(name, module).numel for name, module in found.items())
        names = {f"{name}.weight" for name in found}
        others = sum(tensor.numel() for name, tensor in model.named_parameters() if name not in names)
        if others > packed:
            share = packed / (packed + others)
            raise InputError(
                f"{self.name}: got a transformer with {share:.0%} of its weights in linear layers, wanted most of "
                "them there: the others would stay in 32 bits"
            )
        return found


@functools.lru_cache(maxsize=64)
def generic_transformer(name: str) -> GenericTransformer | None:
    """The family of a class of diffusers' image transformers; None for any other name, which is not looked up."""
    if _NAME.fullmatch(name) is None or name in _PARTS:
        return None
    import diffusers

    made: Any = getattr(diffusers, name, None)
    if not (inspect.isclass(made) and made.__module__.startswith(_MODULES) and issubclass(made, diffusers.ModelMixin)):
        return None
    patterns: tuple[str, ...] = tuple(getattr(made, _SKIPPED) or ())
    skipped = tuple(pattern for pattern in patterns if pattern != _NORMS)
    layers = ("Linear", "Conv2d")
    return GenericTransformer(name, "transformer", "diffusers", "transformer", layers, skipped, OTHERS.get(name))
