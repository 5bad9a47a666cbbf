"""Config, time steps, losses, samples, learning rates and the average, each alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.training_utils import compute_density_for_timestep_sampling

from bitsfusion.data.batches import Batch
from bitsfusion.diffusion.process import process_of
from bitsfusion.errors import InputError
from bitsfusion.io.schema import parse
from bitsfusion.training.config import PAPER_STAGE1, PAPER_STAGE2, TimeStepConfig, TrainingConfig
from bitsfusion.training.ema import ExponentialMovingAverage
from bitsfusion.training.losses import BlockFeatures, feature_distillation, noise_prediction
from bitsfusion.training.optimizer import RELATIVE, build_optimizer, learning_rate_factor, with_relative_steps
from bitsfusion.training.samples import draw_sample
from bitsfusion.training.time_steps import time_step_sampler

from ..tiny.transformers import build_transformer
from ..tiny.unet import build_unet
from .small_run import build_student

PROCESS = process_of(DDPMScheduler())


def drawn_steps(config, count, rng, total=1000):
    return time_step_sampler(config, process_of(DDPMScheduler(num_train_timesteps=total)))(count, rng)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rates": 1e-4}, r"training: learning_rates: Extra inputs are not permitted"),
        (
            {"timesteps": {"kind": "beta", "gamma": 1}},
            r"training: timesteps\.gamma: Extra inputs",
        ),
        ({"text_dropout": 1.5}, r"training: text_dropout: .* got 1\.5"),
        ({"lr_warmup_steps": 10}, "constant_with_warmup"),
        ({"total_batch_size": 8, "gradient_accumulation_steps": 2}, "wanted none beside total_batch_size"),
        ({"validation_steps": 5}, "validation_prompts: got none"),
        ({"shard": True, "mixed_precision": "fp16"}, "got fp16 with shard"),
        ({"timesteps": {"kind": "measured"}}, "curve: got None with kind measured"),
        ({"timesteps": {"curve": "curve.json"}}, "curve: got curve.json with kind beta"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 10, "max_train_steps": 10}, "leaves none of 10"),
    ],
)
def test_a_wrong_config_is_one_line(values, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(TrainingConfig, values, "training")
    assert "\n" not in str(caught.value)


def test_a_plain_no_in_yaml_is_no_mixed_precision():
    values = yaml.safe_load("{mixed_precision: no}")
    assert parse(TrainingConfig, values, "config").mixed_precision == "no"


def test_presets_are_the_papers():
    for preset, total, steps in ((PAPER_STAGE1, 256, 20_000), (PAPER_STAGE2, 1024, 50_000)):
        assert preset.deciding(processes=8)["samples_per_step"] == preset.total_batch_size == total
        assert (preset.max_train_steps, preset.learning_rate, preset.lr_scheduler) == (steps, 1e-5, "constant")
        assert preset.timesteps == TimeStepConfig(kind="beta", alpha=3, beta=1)
        assert preset.text_dropout == 0.1
    assert PAPER_STAGE1.feature_weight == 0.01
    assert [PAPER_STAGE1.accumulation(count) for count in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(InputError, match=r"total_batch_size: got 256, wanted a multiple of 96: .* 32 in each of 3"):
        PAPER_STAGE1.accumulation(3)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_beta_time_steps_follow_their_distribution(alpha):
    t = drawn_steps(TimeStepConfig(alpha=alpha), 100_000, np.random.default_rng(0))
    assert t.dtype == torch.int64 and t.min() >= 0 and t.max() == 999
    seen = np.array([(t < edge).float().mean().item() for edge in range(100, 1000, 100)])
    wanted = (np.arange(100, 1000, 100) / 1000) ** alpha  # the distribution function of Beta(alpha, 1)
    assert np.abs(seen - wanted).max() < 1.63 / math.sqrt(100_000)  # Kolmogorov's 1 % bound


def test_uniform_time_steps_are_uniform():
    t = drawn_steps(TimeStepConfig(kind="uniform"), 100_000, np.random.default_rng(0), total=10)
    counts = torch.bincount(t, minlength=10).numpy()
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 21.7  # chi-squared, 9 degrees of freedom, 1 %


def batch(n: int = 64) -> Batch:
    return Batch(torch.zeros(n, 2, 2, 2), {"input_ids": torch.ones(n, 5, dtype=torch.int64)})


@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_measured_time_steps_follow_the_curve(tmp_path, alpha):
    """A curve that grows as t^(alpha - 1) gives Beta(alpha, 1)."""
    path = tmp_path / "curve.json"
    curve = [(t, ((t + 0.5) / 1000) ** (alpha - 1)) for t in range(0, 1000, 37)]
    path.write_text(json.dumps({"schema_version": 1, "latent_error": {"student": curve}}))
    t = drawn_steps(TimeStepConfig(kind="measured", curve=path), 100_000, np.random.default_rng(0))
    assert t.dtype == torch.int64 and t.min() >= 0 and t.max() <= 999
    seen = np.array([(t < edge).float().mean().item() for edge in range(100, 1000, 100)])
    assert np.abs(seen - (np.arange(100, 1000, 100) / 1000) ** alpha).max() < 1.63 / math.sqrt(100_000) + 2e-3


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"latent_error": {"a": [[1, 2]]}}',
        '{"latent_error": {"a": [[5, 2], [1, 3]]}}',
        '{"latent_error": {"a": [[1, 0], [5, 0]]}}',
        '{"latent_error": {"a": [[1, "x"], [5, 0]]}}',
    ],
)
def test_a_file_that_is_no_curve_is_refused(tmp_path, content):
    path = tmp_path / "curve.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"curve\.json: wanted"):
        drawn_steps(TimeStepConfig(kind="measured", curve=path), 1, np.random.default_rng(0))


def test_another_curve_is_another_run(tmp_path):
    path = tmp_path / "curve.json"
    config = TrainingConfig(timesteps=TimeStepConfig(kind="measured", curve=path))
    seen = []
    for content in ("[1]", "[2]", "[1]"):
        path.write_text(content)
        seen.append(config.deciding())
    assert seen[0] == seen[2] != seen[1]


def test_a_sample_does_not_depend_on_who_trains_on_it():
    """Noise, time steps and dropped prompts of a step's samples, drawn at once and in two halves."""
    config = TrainingConfig()
    whole = draw_sample(batch(64), config, PROCESS, 0, 7)
    halves = [draw_sample(batch(32), config, PROCESS, first, 7) for first in (0, 32)]
    for field in ("noise", "timesteps", "dropped"):
        assert torch.equal(getattr(whole, field), torch.cat([getattr(half, field) for half in halves])), field


def test_samples_depend_on_seed_stage_step_and_place_alone():
    config = TrainingConfig()
    first = draw_sample(batch(), config, PROCESS, 0, 7)
    again = draw_sample(batch(), config, PROCESS, 0, 7)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.timesteps, again.timesteps)
    others = [
        draw_sample(batch(), config, PROCESS, 64, 7),
        draw_sample(batch(), config, PROCESS, 0, 8),
        draw_sample(batch(), config.model_copy(update={"seed": 1}), PROCESS, 0, 7),
        draw_sample(batch(), config.model_copy(update={"stage": 2}), PROCESS, 0, 7),
    ]
    assert not any(torch.equal(first.noise, other.noise) for other in others)


def test_a_tenth_of_the_prompts_is_dropped():
    sample = draw_sample(batch(20_000), TrainingConfig(), PROCESS, 0, 0)
    assert sample.dropped.float().mean().item() == pytest.approx(0.1, abs=0.008)


def test_block_features_are_the_down_and_up_blocks_outputs():
    unet = build_unet()
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([1, 2]), torch.randn(2, 8, 16)
    with BlockFeatures(unet) as features, torch.no_grad():
        unet(*inputs)
        caught = features.take()
        assert [tuple(f.shape) for f in caught] == [(2, 16, 2, 2), (2, 32, 2, 2), (2, 32, 4, 4), (2, 16, 4, 4)]
        assert features.take() == []
    unet(*inputs)
    assert features.take() == [], "hooks are gone"


def test_feature_distillation_is_the_mean_over_blocks_of_the_mean_squared_error():
    ours, theirs = [torch.full((1, 2), 3.0), torch.full((1, 8), 1.0)], [torch.zeros(1, 2), torch.zeros(1, 8)]
    assert feature_distillation(ours, theirs).item() == pytest.approx((9 + 1) / 2)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_is_what_leads_back_to_the_latents(kind):
    process = process_of(DDPMScheduler(prediction_type=kind))
    latents, noise = (torch.randn(4, 2, 2, 2, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0, 300, 700, 998])
    abar = process.signal(t).double()[:, None, None, None]
    noisy, target = process.add_noise(latents, noise, t), process.target(latents, noise, t)
    assert torch.allclose(noisy, abar.sqrt() * latents + (1 - abar).sqrt() * noise, atol=1e-6)
    restored = (
        (noisy - (1 - abar).sqrt() * target) / abar.sqrt()
        if kind == "epsilon"
        else abar.sqrt() * noisy - (1 - abar).sqrt() * target
    )
    assert torch.allclose(restored, latents, atol=1e-4)
    assert noise_prediction(target, target).tolist() == [0, 0, 0, 0]


def test_a_flow_goes_straight_from_latents_to_noise():
    process = process_of(FlowMatchEulerDiscreteScheduler(shift=3.0))
    latents, noise = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2)
    t = torch.tensor([0.0, 250.5, 1000.0])
    noisy, velocity = process.add_noise(latents, noise, t), process.target(latents, noise, t)
    assert torch.equal(noisy[0], latents[0]) and torch.equal(noisy[2], noise[2])
    level = (t / 1000)[:, None, None, None]
    assert torch.allclose(noisy - level * velocity, latents, atol=1e-6)
    assert torch.allclose(process.latent_weight(t), level.flatten() ** 2)
    assert process.time_steps(torch.tensor([0.0, 0.25, 1.0])).tolist() == pytest.approx([0.0, 500.0, 1000.0])


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(InputError, match="'sample', wanted epsilon, v_prediction or a flow"):
        process_of(DDPMScheduler(prediction_type="sample"))


def test_logit_normal_times_are_shifted_towards_noise():
    flow = process_of(FlowMatchEulerDiscreteScheduler(shift=3.0))
    t = time_step_sampler(TimeStepConfig(kind="logit_normal"), flow)(100_000, np.random.default_rng(0))
    assert t.dtype == torch.float32
    assert t.median().item() == pytest.approx(750, abs=5), "the median of the normal is 0: half, shifted"


QWEN_IMAGE = {"base_image_seq_len": 256, "max_image_seq_len": 8192, "base_shift": 0.5, "max_shift": 0.9}


@pytest.mark.parametrize(
    ("name", "options", "tokens"),
    [
        ("FluxTransformer2DModel", {"shift": 3.0}, 16),
        ("SD3Transformer2DModel", {"shift": 3.0, "time_shift_type": "linear"}, 16),
        ("QwenImageTransformer2DModel", QWEN_IMAGE, 16),
        ("ZImageTransformer2DModel", {}, 16),
    ],
)
def test_a_shift_by_size_is_the_schedulers(name, options, tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **options)
    process = process_of(scheduler, build_transformer(name)).at_size((8, 8))
    unit = np.linspace(1, 1 / 7, 7)
    own = scheduler.config
    sizes = own.base_image_seq_len or 256, own.max_image_seq_len or 4096
    mu = calculate_shift(tokens, *sizes, own.base_shift or 0.5, own.max_shift or 1.15)
    scheduler.set_timesteps(sigmas=unit, mu=mu)
    assert torch.allclose(process.time_steps(torch.from_numpy(unit)), scheduler.timesteps, rtol=1e-5)


def test_flux2_shifts_by_its_own_fit():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    process = process_of(scheduler, build_transformer("Flux2Transformer2DModel"))
    for side, steps in ((16, 50), (64, 50), (64, 4)):
        unit = np.linspace(1, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=unit, mu=compute_empirical_mu(side * side, steps))
        found = process.at_size((side, side), steps if steps < 50 else None).time_steps(torch.from_numpy(unit))
        assert torch.allclose(found, scheduler.timesteps, rtol=1e-5)


def test_a_few_times_are_those_of_the_sampler():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    t = time_step_sampler(TimeStepConfig(kind="few", steps=4), process_of(scheduler))(200, np.random.default_rng(0))
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4))
    assert torch.allclose(t.unique().flip(0), scheduler.timesteps, rtol=1e-6)
    with pytest.raises(ValueError, match="steps: got 4 with kind uniform"):
        TimeStepConfig(kind="uniform", steps=4)


def test_mode_is_stable_diffusion_3s():
    flow = process_of(FlowMatchEulerDiscreteScheduler(shift=1.0))
    ours = time_step_sampler(TimeStepConfig(kind="mode"), flow)(100_000, np.random.default_rng(0)) / 1000
    generator = torch.Generator().manual_seed(0)
    theirs = compute_density_for_timestep_sampling("mode", 100_000, mode_scale=1.29, generator=generator)
    at = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    assert torch.allclose(ours.double().quantile(at), theirs.double().quantile(at), atol=0.005)


@pytest.mark.parametrize(
    ("name", "warmup", "wanted"),
    [
        ("constant", 0, {0: 1.0, 99: 1.0}),
        ("constant_with_warmup", 10, {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
        ("linear", 10, {5: 0.5, 10: 1.0, 55: 0.5}),
        ("cosine", 0, {0: 1.0, 50: 0.5, 99: 0.5 * (1 + math.cos(math.pi * 0.99))}),
    ],
)
def test_learning_rates(name, warmup, wanted):
    factor = learning_rate_factor(TrainingConfig(lr_scheduler=name, lr_warmup_steps=warmup, max_train_steps=100))
    assert {step: factor(step) for step in wanted} == pytest.approx(wanted, abs=1e-9)


def test_scales_have_their_own_rate_and_no_decay():
    student = build_student(build_unet())
    config = TrainingConfig(learning_rate=1e-4, scale_learning_rate=1e-5)
    optimizer, names = build_optimizer(student, config, torch.device("cpu"))
    weights, scales = optimizer.param_groups
    assert (weights["lr"], scales["lr"], weights["weight_decay"], scales["weight_decay"]) == (1e-4, 1e-5, 1e-2, 0.0)
    assert len(weights["params"]) + len(scales["params"]) == len(names) == len(list(student.parameters()))
    assert all(name.endswith(".scale") for name in names[len(weights["params"]) :])


def relative_and_plain(rate: float, steps: int, device: str = "cpu"):
    """Scales of very different sizes after some steps of `build_optimizer`'s kind, and log s by torch's own AdamW."""
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor([3.0, 0.03, 0.0003, -0.02, 0.0])
    scale = torch.nn.Parameter(start.clone())
    logs = torch.nn.Parameter(torch.zeros(5))
    options = {"lr": rate, "weight_decay": 0.0, "eps": 1e-30}
    ours = with_relative_steps(torch.optim.AdamW)([{"params": []}, {"params": [scale], RELATIVE: True}], **options)
    theirs = torch.optim.AdamW([logs], **options)
    for _ in range(steps):
        scale.grad = torch.randn(5, generator=generator)
        logs.grad = scale.grad * torch.where(start < 0, -1, 1)
        ours.step()
        theirs.step()
    return start, scale.detach(), logs.detach()


def test_scales_step_in_proportion():
    """AdamW on log |s|: the same ratio for scales of all sizes; a scale of zero stays."""
    start, scale, logs = relative_and_plain(0.01, 20)
    signed = torch.where(start < 0, -logs, logs)
    torch.testing.assert_close(scale, start * signed.exp(), rtol=1e-5, atol=0)
    assert scale[4] == 0 and (scale[:4] != start[:4]).all()


def test_scales_of_a_step_that_overflowed_stay():
    """What torch's GradScaler tells an optimizer that divides by itself, as the fused AdamW does."""
    scale = torch.nn.Parameter(torch.ones(2))
    optimizer = with_relative_steps(torch.optim.AdamW)([{"params": [scale], RELATIVE: True}], lr=0.1)
    scale.grad = torch.full((2,), 8.0)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(8.0)
    optimizer.step()
    assert scale.tolist() == [1, 1]
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert optimizer.state[scale]["exp_avg"].tolist() == pytest.approx([0.1, 0.1])
    assert scale.tolist() == pytest.approx([math.exp(-0.1)] * 2)


def test_the_averages_stand_in_for_the_parameters_for_a_while():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    ema = ExponentialMovingAverage([("w", parameter)], 0.999)
    with torch.no_grad():
        parameter.fill_(2.0)
    with ema.in_place():
        assert parameter.tolist() == [1.0] and ema.state()["w"].tolist() == [2.0]
    assert parameter.tolist() == [2.0] and ema.state()["w"].tolist() == [1.0]


def test_the_average_warms_up_and_is_put_back():
    parameter = torch.nn.Parameter(torch.zeros(2))
    ema = ExponentialMovingAverage([("w", parameter)], 0.999)
    with torch.no_grad():
        parameter.fill_(1.0)
    ema.update(1)
    assert ema.state()["w"].tolist() == pytest.approx([9 / 11] * 2)
    ema.copy_to_parameters()
    assert parameter.tolist() == pytest.approx([9 / 11] * 2)
