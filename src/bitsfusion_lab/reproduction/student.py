"""A student trained by Stage I, and Stage II if asked for: the ladder's rungs, the sweeps' arms, ours."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from bitsfusion.architectures.layers import FIRST_LAST_BITS, LayerRole
from bitsfusion.artifact.writer import write_model
from bitsfusion.diffusion.time_features import choose_features
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit, initial_scale
from bitsfusion.recipe.assign import ETA, Strategy
from bitsfusion.runs.students import train_student
from bitsfusion.training.checkpoint import load_finished
from bitsfusion.training.config import TimeStepConfig, TrainingConfig
from bitsfusion_lab.reproduction.frame import Frame
from bitsfusion_lab.rivals import efficient_dm, lsq
from bitsfusion_lab.rivals.stored import write_model as write_rival

UNIFORM_BITS = 2
ADAPTER_RATE = 10.0
"""By what the learning rate is multiplied where adapters and step sizes alone train."""
UNIFORM_STEPS = TimeStepConfig(kind="uniform")


class Levels(str, Enum):
    """Which integers b bits stand for."""

    LSQ = "lsq"  # 2^b of them, one more below zero
    BALANCE = "balance"  # 2^b + 1
    EFFICIENT_DM = "efficient_dm"  # LSQ's, of a frozen weight and an adapter


@dataclass(frozen=True)
class Student:
    """All that tells one arm from another.

    Fields:
        levels: see `Levels`.
        strategy: how bits are assigned; None: two in every layer, time layers included, but 8 in conv_in and
            conv_out. With a recipe the time layers are cached.
        eta, filled: of the paper's strategy: the exponent, and whether what Alg. 1 leaves of the budget is spent, too.
        scale_init: None: LSQ's own.
        feature_weight: lambda.
        timesteps: of Stage I and II.
        fine_tuned: Stage II after Stage I.
        joined: trains in Stage I for the steps of both stages; of a method that knows no Stage II.
    """

    levels: Levels = Levels.BALANCE
    strategy: Strategy | None = None
    eta: float = ETA
    filled: bool = True
    scale_init: ScaleInit | None = ScaleInit.MINMAX
    feature_weight: float = 0.0
    timesteps: TimeStepConfig = UNIFORM_STEPS
    fine_tuned: bool = False
    joined: bool = False

    @property
    def name(self) -> str:
        """The name of its folders; says every option."""
        bits = f"uniform{UNIFORM_BITS}" if self.strategy is None else self.strategy.value
        eta = f"_eta{self.eta:g}" if self.strategy is Strategy.PAPER else ""
        eta += "" if self.filled else "_unfilled"
        init = "own" if self.scale_init is None else self.scale_init.value
        steps = f"beta{self.timesteps.alpha:g}" if self.timesteps.kind == "beta" else self.timesteps.kind
        last = "_tuned" if self.fine_tuned else "_joined" if self.joined else ""
        return f"{self.levels.value}_{bits}{eta}_{init}_feat{self.feature_weight:g}_{steps}{last}"

    @property
    def trained(self) -> bool:
        """See `Subject`."""
        return True

    @property
    def first_stage(self) -> Student:
        """What Stage II starts from."""
        return replace(self, fine_tuned=False)

    def bits(self, frame: Frame) -> tuple[dict[str, str], dict[str, int]]:
        """What the bits were made by, and the bits of every layer that is quantized."""
        if self.strategy is None:
            ends = {LayerRole.FIRST_LAST: FIRST_LAST_BITS}
            return {}, {n: ends.get(layer.role, UNIFORM_BITS) for n, layer in frame.layers.items()}
        step, recipe = frame.recipe(self.strategy, self.eta, frame.settings.target_bits, self.filled)
        return frame.made(step), dict(recipe.bits)

    def make(self, frame: Frame, seed: int) -> None:
        """See `Subject`: trains what is not trained yet."""
        if self.fine_tuned:
            self.first_stage.make(frame, seed)
        ours, folder = frame.workspace, self._folder(seed)
        config = self._config(frame, seed)
        source, _ = self.bits(frame)
        name = f"train-{self.name}-{seed}"
        if self.fine_tuned:
            source = self.first_stage.made(frame, seed)

        def work() -> None:
            student = self.first_stage.load(frame, seed) if self.fine_tuned else self._start(frame)
            train_student(ours, student, config, frame.path / folder, name)

        inputs: dict[str, Any] = {"student": self.name, "training": config.deciding(), "data": ours.config.data}
        frame.step(name, {**inputs, "made": source}, [folder], work)

    def made(self, frame: Frame, seed: int) -> dict[str, str]:
        """See `Subject`."""
        return frame.made(f"train-{self.name}-{seed}")

    def load(self, frame: Frame, seed: int) -> Any:
        """See `Subject`."""
        student = self._start(frame, ready=False)
        load_finished(frame.path / self._folder(seed), student)
        return student.eval()

    def size(self, frame: Frame, seed: int) -> tuple[float, int]:
        """See `Subject`: bits by Appendix H for ours, b itself for LSQ; the bytes of a packed folder or LSQ's file."""
        output, name = f"files/{self.name}/seed-{seed}", f"file-{self.name}-{seed}"
        info, weights = frame.path / output / "size.json", "diffusion_pytorch_model.safetensors"

        def work() -> None:
            student, target = self.load(frame, seed), frame.path / output
            if self.levels is not Levels.BALANCE:
                rival = lsq if self.levels is Levels.LSQ else efficient_dm
                counted = self._plain_bits(frame)
                size = write_rival(target / weights, student, rival.stored_weights(student))
            else:
                asked = None if self.strategy is None else frame.workspace.covers
                features = choose_features(student, asked, frame.workspace.pipeline.scheduler.config).features
                made = write_model(student, target, features)
                counted, size = made.average_bits, (target / weights).stat().st_size
            write_json(info, {"schema_version": 1, "bits": counted, "bytes": size})

        frame.step(name, {"made": self.made(frame, seed)}, [output], work)
        values = read_json(info)
        return float(values["bits"]), int(values["bytes"])

    def _plain_bits(self, frame: Frame) -> float:
        """b averaged over all weights."""
        layers, bits = frame.layers, self.bits(frame)[1]
        return sum(bits[name] * layer.numel for name, layer in layers.items()) / frame.weights

    def _folder(self, seed: int) -> str:
        return f"students/{self.name}/seed-{seed}"

    def _config(self, frame: Frame, seed: int) -> TrainingConfig:
        settings = frame.settings
        config = settings.stage(2 if self.fine_tuned else 1)
        changes: dict[str, Any] = {"seed": seed, "timesteps": self.timesteps, "feature_weight": self.feature_weight}
        if self.joined:
            changes["max_train_steps"] = settings.steps + settings.fine_tuning_steps
        if self.levels is Levels.EFFICIENT_DM:
            changes["learning_rate"] = settings.learning_rate * ADAPTER_RATE
        return config.model_copy(update=changes)

    def _start(self, frame: Frame, ready: bool = True) -> Any:
        """A fresh student; with scales of one where it is not `ready` to train, only to be loaded into."""
        student = copy.deepcopy(frame.model)
        _, bits = self.bits(frame)
        ones = None if ready else {name: torch.ones(len(student.get_submodule(name).weight)) for name in bits}
        if self.levels is Levels.BALANCE:
            if self.scale_init is None:
                raise InputError("student: got no scale_init with balance levels, wanted one")
            fake_quantize_model(student, bits, self.scale_init, ones)
        elif self.levels is Levels.EFFICIENT_DM:
            efficient_dm.adapt_model(student, bits)
        else:
            method = self.scale_init
            if ones is None and method is not None:
                ones = {n: initial_scale(student.get_submodule(n).weight, b, method) for n, b in bits.items()}
            lsq.lsq_model(student, bits, ones)
        return student
