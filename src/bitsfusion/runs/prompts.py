"""The prompts that a model is calibrated and analysed with, where a file of them or none is named."""

from __future__ import annotations

from pathlib import Path

from bitsfusion.calibration.prompts import PROMPTS
from bitsfusion.embedded import embedded_model
from bitsfusion.evaluation.prompts import file_prompts

_WORLD_PROMPTS = 8  # of each task


def prompts_of(model: str, file: Path | None = None) -> tuple[str, ...]:
    """The prompts of `file`; without one the package's own, or an embedded model's world's.

    Raises:
        InputError: the file cannot be read or has none.
    """
    if file is not None:
        return file_prompts(file, 0).texts
    if known := embedded_model(model):  # every task alike, however few are taken
        prompts = known.world.prompt_set("validation", _WORLD_PROMPTS)
        return tuple(prompt.text for first in range(_WORLD_PROMPTS) for prompt in prompts[first::_WORLD_PROMPTS])
    return PROMPTS
