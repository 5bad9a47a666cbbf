"""Turns captions into a denoiser's conditioning: first rows that a cache can keep, then the tensors of a forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.architectures.registry import architecture_of
from bitsfusion.architectures.unet import UNET


class Conditioner(Protocol):
    """The texts of one pipeline, in two steps.

    `rows` is what a cache on disk keeps: token ids where the encoders are small beside the denoiser. `encode` runs the
    encoders, on the device that they are on.
    """

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The text encoders; frozen, and moved by who trains."""
        ...

    @property
    def sized(self) -> bool:
        """Whether the denoiser is told the images' sizes and crops."""
        ...

    def key(self) -> dict[str, Any]:
        """What the rows depend on besides the captions, as JSON."""
        ...

    def rows(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The captions' rows by name, [n, ...] each, on the CPU; n may be 0."""
        ...

    def cut(self, captions: Sequence[str]) -> int:
        """How many captions are longer than is kept."""
        ...

    def encode(
        self,
        rows: Mapping[str, Tensor],
        latent_size: Sequence[int],
        sizes: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Conditioning:
        """Rows as the denoiser takes them: n rows, floating tensors float32, on the encoders' device.

        Args:
            latent_size: height and width of the latents.
            sizes: [n, 4] int64, height and width of the original images, and top and left of what was cropped from
                them; where not given, the images are what the latents show.
            dropped: [n] bool, the rows that get the null prompt instead of their own (Eq. 6).
        """
        ...

    def null(self, count: int, latent_size: Sequence[int]) -> Conditioning:
        """The empty prompt, as the pipeline has it without classifier-free guidance's text: `count` rows."""
        ...


def encode_captions(conditioner: Conditioner, captions: Sequence[str], latent_size: Sequence[int]) -> Conditioning:
    """`captions` as the denoiser takes them."""
    return conditioner.encode(conditioner.rows(captions), latent_size)


def conditioner_of(pipeline: Any, denoiser: nn.Module | None = None) -> Conditioner:
    """The conditioner of a pipeline in memory.

    Args:
        pipeline: a diffusers pipeline; of its components only tokenizers, text encoders and configs are looked at.
        denoiser: instead of the pipeline's own, which may be missing.

    Raises:
        InputError: a denoiser that is also given images, classes or the like; says which.
    """
    from bitsfusion.diffusion.conditioning.clip import clip_conditioner
    from bitsfusion.diffusion.conditioning.states import states_conditioner
    from bitsfusion.diffusion.denoise import pipeline_denoiser

    model: Any = pipeline_denoiser(pipeline) if denoiser is None else denoiser
    if architecture_of(model) is UNET:
        return clip_conditioner(pipeline, model)
    return states_conditioner(pipeline, model)
