"""Schedulers on a folder whose time features are cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.diffusion.samplers import build_scheduler
from bitsfusion.errors import InputError

from .drawing import images, load

COVERED = (("pndm", 50), ("lcm", 4), ("ddim", 10), ("dpm", 5))


@pytest.fixture(scope="module")
def covered(
    pipeline: StableDiffusionPipeline, student: UNet2DConditionModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("samplers") / "pipeline"
    write_pipeline(pipeline, student, path, COVERED)
    return path


@pytest.mark.parametrize(("name", "steps"), COVERED)
def test_each_covered_sampler_runs(covered: Path, any_step_folder: Path, name: str, steps: int) -> None:
    made = []
    for folder in (covered, any_step_folder):
        pipeline = load(folder)
        pipeline.scheduler = build_scheduler(name, pipeline.scheduler.config)
        made.append(images(pipeline, steps))
    assert np.abs(made[0] - made[1]).mean() < 0.02  # 16-bit rows beside 8-bit layers


@pytest.mark.parametrize(("name", "steps"), [("lcm", 3), ("ddim", 7), ("dpm", 7)])
def test_others_are_refused_by_name(covered: Path, name: str, steps: int) -> None:
    pipeline = load(covered)
    pipeline.scheduler = build_scheduler(name, pipeline.scheduler.config)
    with pytest.raises(
        InputError, match="is not cached: this model covers pndm 50 steps, lcm 4 steps, ddim 10 steps, dpm 5 steps;"
    ):
        images(pipeline, steps)


@pytest.mark.parametrize(("name", "steps"), COVERED)
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_image_to_image_at_any_strength(covered: Path, name: str, steps: int, strength: float) -> None:
    pipeline = load(covered, StableDiffusionImg2ImgPipeline)
    pipeline.scheduler = build_scheduler(name, pipeline.scheduler.config)
    made = pipeline(
        "a red cross",
        torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)),
        strength=strength,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images
    assert np.isfinite(made).all()


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_euler_with_whole_steps_takes_those_of_ddim(covered: Path, kind: type) -> None:
    pipeline = load(covered)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    assert np.isfinite(images(pipeline, 10)).all()


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_euler_with_fractions_is_refused_with_the_way_out(covered: Path, kind: type) -> None:
    pipeline = load(covered)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    with pytest.raises(InputError, match=r"time step \d+(\.\d+)? is not cached.*"):
        images(pipeline, 12)
    fractions = [step for step in pipeline.scheduler.timesteps.tolist() if not float(step).is_integer()]
    with pytest.raises(InputError, match=r"\.\d+ is not cached.* --cover basis"):
        pipeline.unet.time_proj(torch.tensor(fractions[:1]))


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_any_scheduler_where_the_time_layers_are_kept(any_step_folder: Path, kind: type) -> None:
    pipeline = load(any_step_folder)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    assert np.isfinite(images(pipeline, 12)).all()
