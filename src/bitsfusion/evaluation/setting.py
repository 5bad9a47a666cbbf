"""What is compared: a model, or pictures of it, with the original; on which prompts, drawn how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitsfusion.evaluation.pictures import seed_range
from bitsfusion.evaluation.prompts import PromptSet
from bitsfusion.io.pictures import holds_pictures

MODEL, AGAINST = "model", "against"


@dataclass(frozen=True)
class Evaluation:
    """What is drawn.

    Fields:
        model, against: a packed folder, a diffusers pipeline, a hub id, "embedded", or a folder of pictures (see
            `io.pictures`), which are taken as they are; against may be None.
        prompts: one entry an image, the images of a prompt beside each other, each with its seed.
        prompts_source: what results call them.
        size: pixels of a side; None for each model's own.
        sampler, steps, guidance: of what is drawn; every guidance is a set of images (the paper: 2.5 to 9.5).
        dtype: of the pipelines; a packed UNet computes in it, too.
    """

    model: str
    against: str | None
    prompts: PromptSet
    prompts_source: str
    images_per_prompt: int = 1
    sampler: str = "pndm"
    steps: int = 50
    guidance: tuple[float, ...] = (7.5,)
    batch_size: int = 8
    size: int | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def sources(self) -> dict[str, str]:
        """The model or pictures of the one side, or of both."""
        return {MODEL: self.model} | ({AGAINST: self.against} if self.against else {})

    @property
    def picture_sides(self) -> set[str]:
        """The sides that are folders of pictures."""
        return {side for side, source in self.sources.items() if holds_pictures(source)}

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at all; otherwise sampler, steps, guidance and seeds are not known."""
        return len(self.picture_sides) < len(self.sources)

    @property
    def set_guidance(self) -> Sequence[float | None]:
        """The guidance of each set of images; None where it is not known."""
        return self.guidance if self.draws else (None,)

    def record(self) -> dict[str, Any]:
        """What every image depends on beside the model and the guidance, as JSON; null where pictures were given."""
        prompts, draws = self.prompts, self.draws
        sized = {"size": self.size} if draws and self.size is not None else {}
        return {
            **sized,
            "sampler": self.sampler if draws else None,
            "steps": self.steps if draws else None,
            "seeds": seed_range(prompts.seeds) if draws else None,
            "prompts": self.prompts_source,
            "prompts_sha256": prompts.sha256,
            "images": len(prompts.texts),
            "images_per_prompt": self.images_per_prompt,
            "dtype": self.dtype_name if draws else None,
        }

    @property
    def dtype_name(self) -> str:
        """As records have it."""
        return str(self.dtype).removeprefix("torch.")
