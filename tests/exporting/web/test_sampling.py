"""Noise, samplers and time features in the page's scripts against torch's and diffusers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.exporting.web.conftest import Node

from bitsfusion.artifact.reader import open_folder
from bitsfusion.errors import InputError
from bitsfusion.exporting.web.schedulers import SCHEDULERS, page_scheduler

GOLDEN = Path(__file__).parents[2] / "artifact" / "golden"
STABLE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
CONFIGS: list[dict[str, Any]] = [
    {"_class_name": "PNDMScheduler", **STABLE, "skip_prk_steps": True},
    {"_class_name": "PNDMScheduler", **STABLE, "skip_prk_steps": True, "prediction_type": "v_prediction"},
    {"_class_name": "PNDMScheduler", **STABLE, "skip_prk_steps": True, "timestep_spacing": "trailing"},
    {"_class_name": "DDIMScheduler", **STABLE, "clip_sample": False, "set_alpha_to_one": False},
    {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"},
    {
        "_class_name": "DDIMScheduler",
        **STABLE,
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    {"_class_name": "EulerDiscreteScheduler", **STABLE, "timestep_spacing": "leading"},
    {"_class_name": "EulerDiscreteScheduler", **STABLE, "prediction_type": "v_prediction"},
    {
        "_class_name": "DPMSolverMultistepScheduler",
        **STABLE,
        "timestep_spacing": "leading",
        "final_sigmas_type": "sigma_min",
    },
    {"_class_name": "DPMSolverMultistepScheduler", **STABLE, "prediction_type": "v_prediction", "solver_order": 1},
    {"_class_name": "DPMSolverMultistepScheduler", **STABLE, "timestep_spacing": "trailing"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.73},
]
SAMPLE = """
import { makeScheduler } from "./schedulers.js";
print(given.cases.map(([config, steps]) => {
  const scheduler = makeScheduler(config, steps);
  let sample = Float32Array.from(given.noise, (value) => value * scheduler.initialScale);
  let clean;
  for (const time of scheduler.timesteps) {
    const output = scheduler.modelInput(sample).map((value) => Math.tanh(value) * (0.5 + time / 2000));
    ({ sample, clean } = scheduler.step(output, sample));
  }
  return { timesteps: scheduler.timesteps, sample: [...sample], clean: [...clean] };
}));
"""


@pytest.mark.parametrize("count", [16, 17, 31, 192, 1000])
def test_noise_is_torchs(node: Node, count: int) -> None:
    seeds = [0, 1, 1024, 2**32 + 5, 2**53 - 1]
    found = node(
        'import { randn } from "./noise.js"; print(given[1].map((s) => [...randn(s, given[0])]));', [count, seeds]
    )
    for seed, values in zip(seeds, found, strict=True):
        wanted = torch.randn(count, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(torch.tensor(values), wanted, rtol=2e-6, atol=1e-6)


def test_samplers_are_diffusers(node: Node) -> None:
    noise = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    cases = [(page_scheduler(config, tuple(SCHEDULERS)), steps) for config in CONFIGS for steps in (1, 2, 7, 50)]
    found = node(SAMPLE, {"cases": cases, "noise": noise[0].tolist()})
    for (config, steps), made in zip(cases, found, strict=True):
        scheduler: Any = getattr(diffusers, config["_class_name"]).from_config(config)
        scheduler.set_timesteps(steps)
        exact = config["_class_name"] == "FlowMatchEulerDiscreteScheduler"  # cached time features are found by it
        np.testing.assert_allclose(made["timesteps"], scheduler.timesteps.numpy(), rtol=0 if exact else 1e-6)
        sample = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        for time in scheduler.timesteps:
            given = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
            sample = scheduler.step(given.tanh() * (0.5 + time / 2000), time, sample).prev_sample
        torch.testing.assert_close(
            torch.tensor([made["sample"]]), sample, rtol=1e-3, atol=1e-4, msg=str((config, steps))
        )
        assert np.isfinite(made["clean"]).all()


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "HeunDiscreteScheduler"},
        {"_class_name": "PNDMScheduler"},
        {"_class_name": "DDIMScheduler", "thresholding": True},
        {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"},
        {"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
    ],
    ids=str,
)
def test_other_samplers_are_refused(node: Node, config: dict[str, Any]) -> None:
    """By the export, and by the page."""
    with pytest.raises(InputError, match=f"scheduler: got {config['_class_name']}.*, wanted "):
        page_scheduler(config, tuple(SCHEDULERS))
    script = """
    import { makeScheduler } from "./schedulers.js";
    try { makeScheduler(given, 20); print(null); } catch (error) { print(error.message); }
    """
    assert "wanted" in node(script, config)


def test_more_steps_than_were_trained(node: Node) -> None:
    script = """
    import { makeScheduler } from "./schedulers.js";
    try { makeScheduler(given, 20); print(null); } catch (error) { print(error.message); }
    """
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 10}
    assert node(script, config) == "steps: got 20, wanted a whole number from 1 to 10"


@pytest.mark.parametrize(
    ("name", "steps"), [("v2/basis", [1.0, 0.5, 17.25, 998.0]), ("v2/fractions", None), ("v1/cached", None)]
)
def test_time_features(node: Node, whole_page: Path, name: str, steps: list[float] | None) -> None:
    folder = open_folder(GOLDEN / name)
    entry = folder.config.time_features
    asked = list(entry.steps) if steps is None else steps  # type: ignore[union-attr]
    script = """
    import { PackedModel } from "./packed.js";
    import { timeFeatures } from "./time_features.js";
    const features = timeFeatures(new PackedModel("unet", readFileSync(given.config), [readFileSync(given.weights)]));
    let refusal = null;
    try { features(5000); } catch (error) { refusal = error.message; }
    print([given.steps.map((step) => [...features(step)]), refusal]);
    """
    (weights,) = folder.weight_files()
    given = {"config": str(folder.path / "config.json"), "weights": str(weights), "steps": asked}
    found, refusal = node(script, given)
    model: Any = diffusers.UNet2DConditionModel.from_pretrained(folder.path)
    torch.testing.assert_close(torch.tensor(found), model.time_proj(torch.tensor(asked)).float(), rtol=1e-5, atol=1e-6)
    assert "covers" in refusal
