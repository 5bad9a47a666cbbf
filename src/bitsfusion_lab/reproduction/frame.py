"""What all rows share, made once: model, data, analysis, full precision's images; and how a row is scored."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitsfusion.diffusion.time_features import choose_features
from bitsfusion.errors import InputError
from bitsfusion.evaluation.rungs import RungScores
from bitsfusion.io.hashes import sha256_file
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.recipe.assign import Strategy, assign
from bitsfusion.recipe.schema import Recipe, check_fits
from bitsfusion.runs.workspace import SENSITIVITY
from bitsfusion.sensitivity.settings import NoiseErrorSettings
from bitsfusion.sensitivity.table import SensitivityTable, read_table
from bitsfusion_lab.reproduction.settings import Settings
from bitsfusion_lab.study import FULL_PRECISION, Study, step_of


class Frame(Study):
    """The rows' study; a step's outputs are in folders named after it."""

    def __init__(self, settings: Settings, out: Path, progress: ProgressSink = SILENT) -> None:
        """Opens folder `out`.

        Raises:
            InputError: as `Workspace`, or the sensitivity table is not for this model and sampler.
        """
        super().__init__(settings.run_config(), out, progress)
        self.settings = settings
        self._recipes: dict[str, Recipe] = {}
        if settings.sensitivity is not None:
            try:
                self._check(settings.sensitivity)
            except InputError:
                self.close()
                raise

    @functools.cached_property
    def weights(self) -> int:
        """The weights of all Linear and Conv2d layers, over which bits a weight are counted."""
        return sum(layer.numel for layer in self.layers.values())

    def recipe(self, strategy: Strategy, eta: float, target: float, filled: bool = True) -> tuple[str, Recipe]:
        """The step that made it, and the recipe; the analysis is made first where it is not there."""
        name = f"recipe-{strategy.value}-{target:g}" + (f"-eta{eta:g}" if strategy is Strategy.PAPER else "")
        name += "" if filled else "-unfilled"

        def make(table: SensitivityTable) -> Recipe:
            recipe = assign(table, target, strategy, eta=eta, fill_up=filled)
            check_fits(recipe, self.layers)
            return recipe

        if name not in self._recipes:
            self._measure()
            options: dict[str, Any] = {"strategy": strategy.value, "eta": eta, "target_bits": target}
            options |= {} if filled else {"fill_up": False}
            self._recipes[name] = self.assign(name, options, f"recipes/{name.removeprefix('recipe-')}.json", make)
        return name, self._recipes[name]

    def _measure(self) -> None:
        """sensitivity.json: measured by noise error, or the one that is given."""
        ours, given = self.workspace, self.settings.sensitivity

        def measure() -> None:
            if given is not None:
                shutil.copyfile(given, self.path / SENSITIVITY)
                return
            ours.analyze(NoiseErrorSettings())

        source: dict[str, Any] = {"analysis": NoiseErrorSettings()}
        if given is not None:
            source = {"file": sha256_file(given)}
        common = {"data": self.config.data, "serve": self.config.serve.deciding()}
        self.step("analyze", {**source, **common}, [SENSITIVITY], measure)

    def _check(self, given: Path) -> None:
        table = read_table(given)
        if table.source_sha256 != self.workspace.source_sha256:
            raise InputError(f"sensitivity: {given} is of another model, wanted one of {self.config.model}")
        wanted = choose_features(self.model, self.workspace.covers, self.workspace.pipeline.scheduler.config)
        if table.feature_values != wanted.values:
            raise InputError(
                f"sensitivity: {given} counts {table.feature_values} time features, wanted {wanted.values}: "
                f"{wanted.features}"
            )

    def scores(self, name: str, seed: int | None, load: Callable[[], Any], made: dict[str, str]) -> list[RungScores]:
        """Images of a model and what was measured of them, one for each guidance; drawn where they are not there yet.

        Args:
            name: of the row; `FULL_PRECISION` is what the others are compared with, and comes first.
            seed: of its training.
            load: gives the model when it is needed.
            made: what it was made as.
        """
        common = {"prompts_sha256": self.scoring.prompts.sha256, "data": self.config.data, "made": made}
        found = []
        for guidance in self.settings.guidance:
            reference, inputs = None, common
            if name != FULL_PRECISION:
                reference = _place(FULL_PRECISION, None, guidance)
                inputs = common | {"reference": self.made(step_of(reference))}
            found.append(self.score(_place(name, seed, guidance), name, seed, load, inputs, reference, guidance))
        return found


def _place(name: str, seed: int | None, guidance: float) -> str:
    return f"scores/{name}{'' if seed is None else f'/seed-{seed}'}/cfg-{guidance:g}"
