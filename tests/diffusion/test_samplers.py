"""Which steps a sampler visits."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.schedulers import KarrasDiffusionSchedulers

from bitsfusion.diffusion.samplers import (
    Coverage,
    SamplerSteps,
    build_scheduler,
    check_steps,
    cover,
    sampler_name,
)
from bitsfusion.errors import InputError

CONFIG = PNDMScheduler(
    beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1, timestep_spacing="leading"
).config


def visited_steps(name: str, steps: int, config: Mapping[str, Any]) -> list[float]:
    """The different time steps of a sampler, in their order."""
    scheduler = build_scheduler(name, config)
    check_steps(scheduler, name, steps)
    return list(dict.fromkeys(scheduler.timesteps.tolist()))


def test_pndm_50_of_stable_diffusion_has_50_different_steps() -> None:
    assert visited_steps("pndm", 50, CONFIG) == list(range(981, 0, -20))


@pytest.mark.parametrize("name", ["pndm", "ddim", "dpm", "lcm"])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_steps_are_different_and_in_range(name: str, steps: int) -> None:
    visited = visited_steps(name, steps, CONFIG)
    assert len(set(visited)) == len(visited) >= 1
    assert all(0 <= step < 1000 for step in visited) and visited == sorted(visited, reverse=True)


def test_union() -> None:
    coverage = cover([("pndm", 50), ("dpm", 20)], CONFIG)
    assert set(coverage.steps) == {*visited_steps("pndm", 50, CONFIG), *visited_steps("dpm", 20, CONFIG)}
    assert coverage.samplers == (SamplerSteps("pndm", 50), SamplerSteps("dpm", 20))
    assert str(coverage) == "pndm 50 steps, dpm 20 steps"


def test_a_spacing_that_the_file_leaves_open_is_covered_in_both_readings() -> None:
    """diffusers gives DPM-Solver++ its own spacing on the original config, PNDM's on the saved one."""
    left_open = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1).config
    visited = []
    for spacing in ({}, {"timestep_spacing": "leading"}):
        scheduler = DPMSolverMultistepScheduler.from_config(left_open, **spacing)
        scheduler.set_timesteps(20)
        visited.append(set(scheduler.timesteps.tolist()))
    assert visited[0] != visited[1]
    assert set(cover([("dpm", 20)], left_open).steps) == visited[0] | visited[1]
    assert set(cover([("dpm", 20)], CONFIG).steps) == visited[1] == set(visited_steps("dpm", 20, left_open))


def test_ddim_clips_no_latents_unless_the_config_says_so() -> None:
    assert build_scheduler("ddim", CONFIG).config.clip_sample is False
    assert build_scheduler("ddim", {**CONFIG, "clip_sample": True}).config.clip_sample is True
    scheduler = build_scheduler("ddim", CONFIG)
    scheduler.set_timesteps(20)
    noise = torch.full((1, 4, 2, 2), 0.5)
    clean = scheduler.step(noise, 951, torch.full_like(noise, 3.0)).pred_original_sample
    alpha = scheduler.alphas_cumprod[951]
    assert torch.allclose(clean, (3.0 - (1 - alpha) ** 0.5 * noise) / alpha**0.5)  # far outside of [-1, 1]


def test_unknown_sampler() -> None:
    with pytest.raises(InputError, match=r"got 'oiler', wanted own, pndm, ddim, .*or a scheduler class of diffusers"):
        visited_steps("oiler", 20, CONFIG)


def test_lcm_4_is_that_of_its_authors() -> None:
    """As in the model card of latent-consistency models: 50 original steps, every 20th, from 999 on."""
    assert visited_steps("lcm", 4, CONFIG) == [999, 759, 499, 259]


def test_lcm_has_no_more_steps_than_it_was_distilled_with() -> None:
    with pytest.raises(InputError, match="sampler lcm: got 51 steps: "):
        visited_steps("lcm", 51, CONFIG)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_count(steps: int) -> None:
    with pytest.raises(InputError, match="wanted 1 to 1000"):
        visited_steps("ddim", steps, CONFIG)


def test_coverage_needs_different_steps() -> None:
    with pytest.raises(InputError, match="none twice"):
        Coverage((1, 1))


@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        ("euler", "euler"),
        ("Euler", "euler"),
        ("EulerDiscreteScheduler", "euler"),
        ("euler_a", "euler-a"),
        ("EulerAncestralDiscrete", "euler-a"),
        ("UniPCMultistepScheduler", "unipc"),
        ("sasolver", "SASolverScheduler"),
        ("own", "own"),
    ],
)
def test_names(name: str, file_name: str) -> None:
    assert sampler_name(name) == file_name == sampler_name(file_name)


@pytest.mark.parametrize("kind", [scheduler.name for scheduler in KarrasDiffusionSchedulers])
def test_every_scheduler_of_stable_diffusion_by_its_class(kind: str) -> None:
    if kind == "DPMSolverSDEScheduler" and importlib.util.find_spec("torchsde") is None:
        with pytest.raises(InputError, match=r"dpm-sde: .*torchsde"):
            build_scheduler("dpm-sde", CONFIG)
        return
    assert type(build_scheduler(kind, CONFIG)).__name__ == kind
    assert len(visited_steps(kind, 4, CONFIG)) >= 4


def test_steps_with_fractions_are_the_float32_numbers_that_are_asked_for() -> None:
    steps = cover([("euler", 30)], {**CONFIG, "timestep_spacing": "linspace"}).steps
    scheduler = EulerDiscreteScheduler.from_config(CONFIG, timestep_spacing="linspace")
    scheduler.set_timesteps(30)
    assert torch.equal(torch.tensor(steps, dtype=torch.float32), scheduler.timesteps)
    assert any(step != int(step) for step in steps) and isinstance(steps[-1], int)


def test_own_is_the_scheduler_of_the_config() -> None:
    config = {**EulerAncestralDiscreteScheduler().config, "_class_name": "EulerAncestralDiscreteScheduler"}
    assert isinstance(build_scheduler("own", config), EulerAncestralDiscreteScheduler)
    assert cover([("own", 4)], config).samplers == (SamplerSteps("euler-a", 4),)
    with pytest.raises(InputError, match="got 'Missing' in the scheduler's config"):
        build_scheduler("own", {**config, "_class_name": "Missing"})


ZERO_SNR = DDIMScheduler(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    rescale_betas_zero_snr=True,
    prediction_type="v_prediction",
    timestep_spacing="trailing",
)


@pytest.mark.parametrize("name", ["pndm", "dpm", "dpm-single", "deis", "unipc", "euler", "euler-a", "heun", "lms"])
def test_what_the_model_was_trained_on_holds_for_every_sampler(name: str) -> None:
    """Zero terminal SNR where the class has no such option, too; and velocities are predicted."""
    scheduler = build_scheduler(name, ZERO_SNR.config)
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.timestep_spacing == "trailing"
    torch.testing.assert_close(scheduler.alphas_cumprod, ZERO_SNR.alphas_cumprod, rtol=0, atol=1e-6)
    assert visited_steps(name, 4, ZERO_SNR.config)[0] == 999


def test_a_sampler_that_cannot_read_velocities_is_refused() -> None:
    with pytest.raises(InputError, match="for a model that predicts v_prediction, wanted one"):
        build_scheduler("FlowMatchEulerDiscreteScheduler", ZERO_SNR.config)
