"""The embedded models, in FP16, and the drawn worlds that they were trained on by `bitsfusion_lab.embedding`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bitsfusion.embedded.world import World

_HERE = Path(__file__).parent

PIPELINE_FOLDER = _HERE / "pipeline"
"""A Stable Diffusion pipeline of the quick world (`quick.QUICK`): what commands call "embedded"."""
SCORER_FOLDER = _HERE / "scorer"
"""Its CLIP model."""
GRID_PIPELINE_FOLDER = _HERE / "grid_pipeline"
"""The same of the grid world (`grid.GRID`): what commands call "embedded:grid"."""
GRID_SCORER_FOLDER = _HERE / "grid_scorer"
FLOW_PIPELINE_FOLDER = _HERE / "flow_pipeline"
"""An AuraFlow of the grid world: what commands call "embedded:flow"."""
PAPER_GUIDANCE = 7.5


@dataclass(frozen=True)
class EmbeddedModel:
    """A pipeline that ships inside the package. Its world gives it data that never ends, and exact scores.

    Fields:
        title: its name in texts.
        pipeline: the folder.
        scorer: the folder of its world's CLIP model.
        guidance: its default guidance scale, chosen on validation prompts.
        world_name: see `world_of`.
        sampler: its default sampler.
    """

    title: str
    pipeline: Path
    scorer: Path
    guidance: float
    world_name: Literal["quick", "grid"]
    sampler: Literal["pndm", "own"] = "pndm"

    @property
    def world(self) -> World:
        """The drawn world that it was trained on."""
        return world_of(self.world_name)


MODELS: Mapping[str, EmbeddedModel] = {
    "embedded": EmbeddedModel("The embedded model", PIPELINE_FOLDER, SCORER_FOLDER, PAPER_GUIDANCE, "quick"),
    "embedded:grid": EmbeddedModel("The grid world's model", GRID_PIPELINE_FOLDER, GRID_SCORER_FOLDER, 3.0, "grid"),
    "embedded:flow": EmbeddedModel(
        "The grid world's flow model", FLOW_PIPELINE_FOLDER, GRID_SCORER_FOLDER, 1.5, "grid", "own"
    ),
}
"""The embedded models, by the names that commands take."""


def embedded_model(*names: str | None) -> EmbeddedModel | None:
    """The first of the models named that is an embedded one."""
    return next((MODELS[name] for name in names if name and name in MODELS), None)


def guidance_of(*names: str | None) -> float:
    """The default guidance scale: that of the first embedded model among those named, or the paper's."""
    found = embedded_model(*names)
    return found.guidance if found else PAPER_GUIDANCE


def world_of(name: str) -> World:
    """The drawn world "quick" or "grid"; imported on use, since reading its pictures needs scipy."""
    world: World = getattr(import_module(f"bitsfusion.embedded.{name}"), name.upper())
    return world
