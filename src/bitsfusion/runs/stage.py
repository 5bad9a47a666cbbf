"""One training stage by itself: a model, data, bits or an earlier stage's student, and the stage's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from diffusers import ModelMixin
from pydantic import Field, model_validator

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import denoiser_called, denoiser_of, model_layers
from bitsfusion.data.batches import TrainingData
from bitsfusion.devices import placed, resolve
from bitsfusion.diffusion.denoise import with_denoiser
from bitsfusion.errors import InputError
from bitsfusion.io.schema import Checked, parse
from bitsfusion.io.texts import read_yaml
from bitsfusion.io.work_folder import folder_lock
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.component import load_component
from bitsfusion.pipelines.folder import Component
from bitsfusion.pipelines.load import load_pipeline, whole_pipeline
from bitsfusion.pipelines.planned import planned_denoiser
from bitsfusion.progress import SILENT, ProgressSink
from bitsfusion.recipe.assign import assign
from bitsfusion.recipe.named import recipe_bits
from bitsfusion.runs.config import (
    DataSource,
    PaperAnalysis,
    RunConfig,
    TrajectorySource,
    WorldSource,
    with_own_defaults,
)
from bitsfusion.runs.prompts import prompts_of
from bitsfusion.runs.sources import training_data
from bitsfusion.sensitivity.passes import forward_passes
from bitsfusion.sensitivity.table import MEASURED_BITS
from bitsfusion.sensitivity.weight_error import weight_error_table
from bitsfusion.training.checkpoint import STUDENT_INFO, find_checkpoint, load_student
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.loop import TrainingResult, train
from bitsfusion.training.plan import Machine, Plan, count_forward, plan_stage
from bitsfusion.training.ranks import Ranks
from bitsfusion.training.trajectories import Trajectories


class StageConfig(Checked):
    """A stage of training on files."""

    model: str
    """A diffusers folder, a hub id, or an embedded model: the teacher, and the text encoder, tokenizer and VAE."""
    data: Annotated[DataSource | TrajectorySource, Field(discriminator="kind")]
    recipe: str | float | None = None
    """Start from the model's own weights with these bits: a recipe file, a shipped recipe's name, uniform:N, or an
    average such as 1.99, spread by the weights' own errors."""
    scale_init: ScaleInit = ScaleInit.EXACT
    student: Path | None = None
    """Or start from a finished stage's folder, or a checkpoint of it."""
    training: TrainingConfig

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, values: Any) -> Any:
        return with_own_defaults(values)

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if (self.recipe is None) == (self.student is None):
            raise ValueError(f"recipe {self.recipe}, student {self.student}: wanted one of them to start from")
        if isinstance(self.data, TrajectorySource) and self.training.stage == 2:
            raise ValueError("data: got trajectories with stage 2, wanted stage 1, or captioned images")
        return self


def read_training_config(
    path: Path, overrides: list[str] | None = None, device: str | None = None
) -> StageConfig | RunConfig:
    """A YAML file of one stage (it has a `training` section) or of a whole run.

    Args:
        path: the file.
        overrides: "key.key=value" each, the value in YAML; put in the place of what the file says.
        device: put in the place of the file's, where given.

    Raises:
        InputError: there is no such file, it is not YAML, or a field is unknown or out of range.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: got a {type(values).__name__}, wanted fields and their values")
    for text in overrides or ():
        _override(values, text)
    schema: type[StageConfig | RunConfig] = StageConfig if "training" in values else RunConfig
    if device is not None:
        _override(values, f"training.device={device}" if schema is StageConfig else f"device={device}")
    return parse(schema, values, str(path))


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *sections, last = key.split(".")
    if not equals or not all((*sections, last)):
        raise InputError(f"set: got {text!r}, wanted KEY=VALUE such as training.train_batch_size=1")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"set: {key}: {section} is no section of the config")
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"set: {key}: got {value!r}, wanted a value in YAML") from None


def train_stage(config: StageConfig, out: Path, progress: ProgressSink = SILENT) -> TrainingResult:
    """Trains one stage into folder `out`, or continues there; `out` is then what `bitsfusion pack` reads.

    Holds one dense copy of the denoiser, the student, and in Stage I the teacher in its own dtype. All processes of a
    launch call this; the main one writes.

    Raises:
        InputError: parts that do not go together, or another run works in `out`; see `train`.
    """
    ranks = Ranks(resolve(config.training.device))
    lock = folder_lock(out, out / ".lock") if ranks.main else None
    ranks.wait()
    try:
        folder = whole_pipeline(config.model)
        pipeline, student = load_pipeline(folder, denoiser=False), _student(config, folder.denoiser, out)
        teacher = None
        if config.training.stage == 1:
            teacher = load_component(folder.denoiser, getattr(torch, config.training.teacher_dtype))
        data = _data(config, pipeline, student, teacher, progress, ranks.device)
        tell = progress.training(f"stage {config.training.stage}")
        return train(student, teacher, pipeline, data, config.training, out, tell)
    finally:
        if lock:
            lock.close()


def plan_training(config: StageConfig | RunConfig, machine: Machine | None = None) -> dict[str, Plan]:
    """What each stage will cost, by its name; reads the model's configs, no weights and no data."""
    model, size, tokens = _shapes(config)
    stages = [config.training] if isinstance(config, StageConfig) else [config.stage1, config.stage2]
    return {f"stage {stage.stage}": plan_stage(model, stage, size, tokens, machine) for stage in stages}


@dataclass(frozen=True)
class AnalysisPlan:
    """The cost of a run's analysis, which one process does.

    Fields:
        candidates: layers times bit widths.
        passes: latents through the denoiser in all; see `sensitivity.passes`.
        flops: operations of all of them.
        days: on one GPU.
    """

    method: str
    candidates: int
    passes: int
    flops: int
    days: float


def plan_analysis(config: RunConfig, machine: Machine | None = None) -> AnalysisPlan:
    """What the analysis will cost; reads the model's configs, no weights and no data."""
    machine = machine or Machine()
    model, size, tokens = _shapes(config)
    settings = config.analysis
    images = settings.number(config.model) if isinstance(settings, PaperAnalysis) else 0
    layers = model_layers(denoiser_called(model).build(model)).values()
    candidates = len(MEASURED_BITS) * sum(layer.role is LayerRole.QUANTIZED for layer in layers)
    passes = forward_passes(settings, candidates, images)
    flops = passes * count_forward(model, size, tokens).flops
    days = flops / (machine.flops_32bit * machine.utilisation) / 86400  # it computes in float32
    return AnalysisPlan(settings.method, candidates, passes, flops, days)


def _shapes(config: StageConfig | RunConfig) -> tuple[Mapping[str, Any], int, int]:
    """The denoiser's config, height and width of the latents, and tokens of a prompt."""
    model = planned_denoiser(config.model)
    pixels = None if isinstance(config.data, WorldSource) else config.data.resolution
    return model.config, pixels // model.pixels if pixels else model.latent_size, model.tokens


def _student(config: StageConfig, denoiser: Component, out: Path) -> ModelMixin:
    if config.student is not None:
        return load_student(config.student)
    unet: ModelMixin = load_component(denoiser)
    bits = _bits(config, unet)
    scales = None
    if (out / STUDENT_INFO).exists() or find_checkpoint(out, config.training.resume_from_checkpoint):
        # What is there brings its own scales: no need to look for them again.
        scales = {name: torch.ones(len(unet.get_submodule(name).weight)) for name in bits}
    fake_quantize_model(unet, bits, config.scale_init, scales)
    return unet


def _bits(config: StageConfig, denoiser: Any) -> dict[str, int]:
    layers = model_layers(denoiser)
    if not isinstance(config.recipe, float):
        return recipe_bits(config.recipe or "", layers)
    table = weight_error_table(
        layers,
        lambda name: denoiser.get_submodule(name).weight.detach(),
        model=config.model,
    )
    return dict(assign(table, config.recipe, keep_time_layers=True).bits)


def _data(
    config: StageConfig,
    pipeline: Any,
    student: ModelMixin,
    teacher: ModelMixin | None,
    progress: ProgressSink,
    device: torch.device,
) -> TrainingData:
    source = config.data
    if not isinstance(source, TrajectorySource):
        return training_data(source, pipeline, "train", progress, student, device)
    assert teacher is not None
    whole = with_denoiser(pipeline, teacher)
    side = source.resolution and source.resolution // (whole.vae_scale_factor * denoiser_of(teacher).compression)
    with placed(whole, device), progress.timed("trajectories") as tell:
        return Trajectories(
            whole,
            teacher,
            prompts_of(config.model, source.prompts),
            side=side,
            progress=tell,
            **source.model_dump(include={"samples", "steps", "guidance", "seed", "batch_size"}),
        )
