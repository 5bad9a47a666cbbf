"""Few-step models are trained where their own scheduler asks them, on what their own steps lead to."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import yaml
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from bitsfusion.architectures.registry import denoiser_of, layers_to_assign
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.diffusion.conditioning.states import sequence_length
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.errors import InputError
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.runs.stage import plan_training, read_training_config, train_stage
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.log import read_log
from bitsfusion.training.loop import train
from bitsfusion.training.trajectories import Trajectories, follow, prepared_scheduler

from ..tiny.kinds import KINDS, SCHEDULE, build_sd
from ..tiny.transformers import build_transformer_pipeline

PROMPTS = ("red circle", "blue square", "circle")


def turbo(kind=EulerAncestralDiscreteScheduler):
    """As SD-Turbo and Lightning come: trailing steps, latents scaled before the UNet sees them."""
    return build_sd(scheduler=kind(**SCHEDULE, timestep_spacing="trailing"))


FLOWS = ("FluxTransformer2DModel", "Flux2Transformer2DModel", "ZImageTransformer2DModel")
FEW_STEP = {
    "lcm": KINDS["lcm"],
    "turbo": turbo,
    "lightning": lambda: turbo(EulerDiscreteScheduler),
    "sdxl": KINDS["sdxl"],
}
FEW_STEP |= {name: (lambda name=name: build_transformer_pipeline(name)) for name in FLOWS}


def as_the_pipeline_asks(pipeline, prompt, seed, steps, side):
    """What the pipeline's own code gives its denoiser: (first tensor, time step) of each call."""
    model, calls = pipeline_denoiser(pipeline), []

    def note(_, args, kwargs, output):
        calls.append((args, kwargs))

    handle = model.register_forward_hook(note, with_kwargs=True)
    generator = [torch.Generator("cpu").manual_seed(seed)]
    options = {"output_type": "latent", "num_inference_steps": steps, "generator": generator}
    guidance = 7.5 if "LatentConsistency" in type(pipeline).__name__ else 0.0
    scale = pipeline.vae_scale_factor
    pipeline([prompt], guidance_scale=guidance, height=side * scale, width=side * scale, **options)
    handle.remove()
    return calls


@pytest.mark.parametrize("kind", ["lcm", "turbo", "lightning", "sdxl"])
def test_latents_and_times_are_the_pipelines_own(kind):
    """With the same generator: its first noise, and what stochastic schedulers (LCM, ancestral) add."""
    pipeline = FEW_STEP[kind]()
    unet = pipeline.unet
    data = Trajectories(pipeline, unet, PROMPTS, samples=2, steps=3, seed=7, batch_size=2)
    side = unet.config.sample_size
    for index, prompt in enumerate(PROMPTS[:2]):
        calls = as_the_pipeline_asks(pipeline, prompt, 7 + index, 3, side)
        assert data.times == list(dict.fromkeys(float(args[1]) for args, _ in calls))
        ours = data._latents[index::2]
        for ours_at, (args, _) in zip(ours, calls, strict=True):
            torch.testing.assert_close(ours_at[None], args[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_is_followed_as_its_pipeline_does(name):
    """Its scheduler's times, with whatever the pipeline tells it of the size; the same latents, in another layout."""
    pipeline = FEW_STEP[name]()
    model, side = pipeline.transformer, 4
    kept, asked = [], []
    scheduler = prepared_scheduler(pipeline, model, PROMPTS[0], 4, 1.0, side)
    conditioner = conditioner_of(pipeline, model)
    last = follow(scheduler, model, conditioner, PROMPTS[:1], [7], side, 1.0, lambda given, time: kept.append(time))
    step = pipeline.scheduler.step
    pipeline.scheduler.step = lambda output, time, *rest, **more: (
        asked.append(time),
        step(output, time, *rest, **more),
    )[1]
    pixels = side * pipeline.vae_scale_factor * denoiser_of(model).compression
    options = {"height": pixels, "width": pixels, "generator": [torch.Generator("cpu").manual_seed(7)]}
    guidance = getattr(conditioner, "guidance", None)
    options |= {"guidance_scale": guidance or 0.0, "max_sequence_length": sequence_length(pipeline)}
    theirs = pipeline(prompt=[PROMPTS[0]], num_inference_steps=4, output_type="latent", **options).images
    assert [float(time) for time in kept] == [float(time) for time in asked] and len(kept) == 4
    if name != "Flux2Transformer2DModel":  # whose pipeline returns them in the VAE's own scale
        torch.testing.assert_close(
            last.flatten().sort().values, theirs.flatten().float().sort().values, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("kind", FEW_STEP)
def test_a_student_is_trained_on_them(kind, tmp_path):
    """Its error to the teacher, at the teacher's own latents and times, falls."""
    pipeline = FEW_STEP[kind]()
    teacher = pipeline_denoiser(pipeline)
    data = Trajectories(pipeline, teacher, PROMPTS, samples=4, steps=4, side=4)
    student = copy.deepcopy(teacher)
    fake_quantize_model(student, dict.fromkeys(layers_to_assign(student), 3))
    config = TrainingConfig(
        train_batch_size=4, max_train_steps=12, learning_rate=2e-3, text_dropout=0.0, logging_steps=4, feature_weight=0
    )
    result = train(student, teacher, pipeline, data, config, tmp_path)
    log = read_log(tmp_path / "log.jsonl")
    assert result.steps == 12 and log[-1]["noise_loss"] < log[0]["noise_loss"]


def test_batches_are_those_of_one_process():
    pipeline = turbo()
    data = Trajectories(pipeline, pipeline.unet, PROMPTS, samples=3, steps=2)
    whole = data.batch(5, 0, 1, 6)
    halves = [data.batch(5, rank, 2, 3) for rank in (0, 1)]
    assert torch.equal(whole.latents, torch.cat([half.latents for half in halves]))
    assert torch.equal(whole.timesteps, torch.cat([half.timesteps for half in halves]))
    assert set(whole.timesteps.tolist()) <= set(data.times) == {999.0, 499.0}
    again = Trajectories(pipeline, pipeline.unet, PROMPTS, samples=3, steps=2)
    assert torch.equal(again.batch(5, 0, 1, 6).latents, whole.latents) and again.fingerprint == data.fingerprint


@pytest.fixture
def config_file(tmp_path):
    KINDS["lcm"]().save_pretrained(tmp_path / "model")
    values = {
        "model": str(tmp_path / "model"),
        "data": {"kind": "trajectories", "samples": 3, "steps": 4, "batch_size": 2},
        "recipe": "uniform:3",
        "training": {"stage": 1, "train_batch_size": 2, "max_train_steps": 2, "text_dropout": 0.0},
    }
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_stage_of_an_lcm_from_its_config(config_file, tmp_path):
    config = read_training_config(config_file)
    result = train_stage(config, tmp_path / "out")
    assert result.steps == 2 and (tmp_path / "out" / "student.safetensors").exists()
    assert json.loads((tmp_path / "out" / "student.json").read_text())["step"] == 2
    assert train_stage(config, tmp_path / "out").resumed_from == 2
    assert plan_training(config)["stage 1"].days > 0


def test_stage_two_needs_images(config_file):
    with pytest.raises(InputError, match="got trajectories with stage 2, wanted stage 1, or captioned images"):
        read_training_config(config_file, ["training.stage=2"])
    with pytest.raises(InputError, match="got no prompts"):
        Trajectories(turbo(), None, (), samples=1, steps=1)
