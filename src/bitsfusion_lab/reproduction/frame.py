"""What all rows share, made once: model, data, analysis, full precision's images; and how a row is scored."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitsfusion.architectures.registry import model_layers
from bitsfusion.diffusion.time_features import choose_features
from bitsfusion.errors import InputError
from bitsfusion.evaluation.rungs import SCHEMA_VERSION, RungScores
from bitsfusion.io.hashes import sha256_file
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.recipe.assign import Strategy, assign
from bitsfusion.recipe.schema import Recipe, check_fits, read_recipe, write_recipe
from bitsfusion.runs.scoring import Scoring
from bitsfusion.runs.workspace import SENSITIVITY, Workspace
from bitsfusion.sensitivity.settings import NoiseErrorSettings
from bitsfusion.sensitivity.table import read_table
from bitsfusion_lab.reproduction.settings import Settings

FULL_PRECISION = "full_precision"
PROBE_SEED = 77


class Frame:
    """A folder of steps, each done once (see `RunFolder`); a step's outputs are in folders named after it."""

    def __init__(self, settings: Settings, out: Path, progress: ProgressSink = SILENT) -> None:
        """Opens folder `out`.

        Raises:
            InputError: as `Workspace`, or the sensitivity table is not for this model and sampler.
        """
        self.settings = settings
        self.workspace = Workspace(settings.run_config(), out, progress)
        self.path, self.step = self.workspace.path, self.workspace.step
        self.pipeline_config = self.workspace.config
        self.scoring = Scoring(self.workspace)
        self._recipes: dict[str, Recipe] = {}
        if settings.sensitivity is not None:
            try:
                self._check(settings.sensitivity)
            except InputError:
                self.close()
                raise

    def close(self) -> None:
        """Lets other processes use the folder."""
        self.workspace.folder.close()

    def made(self, step: str) -> dict[str, str]:
        """The outputs of a finished step with their SHA-256."""
        return dict(self.workspace.folder.made(step))

    @property
    def unet(self) -> Any:
        """Full precision's; not to be changed."""
        return self.workspace.denoiser

    @functools.cached_property
    def weights(self) -> int:
        """The weights of all Linear and Conv2d layers, over which bits a weight are counted."""
        return sum(layer.numel for layer in model_layers(self.unet).values())

    def recipe(self, strategy: Strategy, eta: float, target: float, filled: bool = True) -> tuple[str, Recipe]:
        """The step that made it, and the recipe; the analysis is made first where it is not there."""
        name = f"recipe-{strategy.value}-{target:g}" + (f"-eta{eta:g}" if strategy is Strategy.PAPER else "")
        name += "" if filled else "-unfilled"
        if name not in self._recipes:
            self._recipes[name] = self._assign(name, strategy, eta, target, filled)
        return name, self._recipes[name]

    def _assign(self, name: str, strategy: Strategy, eta: float, target: float, filled: bool) -> Recipe:
        table_path = self._analyze()
        output = f"recipes/{name.removeprefix('recipe-')}.json"

        def work() -> None:
            recipe = assign(read_table(table_path), target, strategy, eta=eta, fill_up=filled)
            check_fits(recipe, model_layers(self.unet))
            write_recipe(self.path / output, recipe)

        options: dict[str, Any] = {"strategy": strategy.value, "eta": eta, "target_bits": target}
        options |= {} if filled else {"fill_up": False}
        self.step(name, {**options, "made": self.made("analyze")}, [output], work)
        return read_recipe(self.path / output)

    def _analyze(self) -> Path:
        """sensitivity.json: measured by noise error, or the one that is given."""
        ours, given = self.workspace, self.settings.sensitivity
        table_path = self.path / SENSITIVITY

        def measure() -> None:
            if given is not None:
                shutil.copyfile(given, table_path)
                return
            ours.analyze(NoiseErrorSettings())

        source: dict[str, Any] = {"analysis": NoiseErrorSettings()}
        if given is not None:
            source = {"file": sha256_file(given)}
        common = {"data": ours.config.data, "serve": ours.config.serve.deciding()}
        self.step("analyze", {**source, **common}, [table_path.name], measure)
        return table_path

    def _check(self, given: Path) -> None:
        table = read_table(given)
        if table.source_sha256 != self.workspace.source_sha256:
            raise InputError(f"sensitivity: {given} is of another model, wanted one of {self.workspace.config.model}")
        wanted = choose_features(self.unet, self.workspace.covers, self.workspace.pipeline.scheduler.config)
        if table.feature_values != wanted.values:
            raise InputError(
                f"sensitivity: {given} counts {table.feature_values} time features, wanted {wanted.values}: "
                f"{wanted.features}"
            )

    def score(self, name: str, seed: int | None, load: Callable[[], Any], made: dict[str, str]) -> list[RungScores]:
        """Images of a model and what was measured of them, one for each guidance; drawn where they are not there yet.

        Args:
            name: of the row; `FULL_PRECISION` is what the others are compared with, and comes first.
            seed: of its training.
            load: gives the model when it is needed.
            made: what it was made as.
        """
        return [self._score(name, seed, load, made, guidance) for guidance in self.settings.guidance]

    def _score(
        self, name: str, seed: int | None, load: Callable[[], Any], made: dict[str, str], guidance: float
    ) -> RungScores:
        place = _place(name, seed, guidance)
        section = self.pipeline_config.evaluation.model_dump(mode="json") | {"guidance": guidance}
        inputs: dict[str, Any] = {
            "scores": SCHEMA_VERSION,
            "evaluation": section,
            "prompts_sha256": self.scoring.prompts.sha256,
            "data": self.pipeline_config.data,
            "made": made,
        }
        reference = None if name == FULL_PRECISION else _place(FULL_PRECISION, None, guidance)
        if reference is not None:
            inputs["reference"] = self.made(_step_name(reference))

        def work() -> None:
            original = None if reference is None else self.path / reference
            self.scoring.score(_step_name(place), name, seed, load(), self.path / place, original, guidance)

        self.step(_step_name(place), inputs, [place], work)
        return RungScores.load(self.path / place)


def _place(name: str, seed: int | None, guidance: float) -> str:
    return f"scores/{name}{'' if seed is None else f'/seed-{seed}'}/cfg-{guidance:g}"


def _step_name(place: str) -> str:
    return place.replace("scores/", "score-").replace("/", "-")
