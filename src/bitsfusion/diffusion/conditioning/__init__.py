"""From captions to what a denoiser is given; `conditioner_of` finds the way of a pipeline."""

from bitsfusion.diffusion.conditioning.base import Conditioner, conditioner_of

__all__ = ["Conditioner", "conditioner_of"]
