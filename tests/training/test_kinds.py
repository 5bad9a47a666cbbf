"""Training, analysis and the time-step curve on pipelines that are given more than one text: SDXL, its refiner, LCM."""

from __future__ import annotations

import copy

import pytest
import torch

from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.data.batches import Batch
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.diffusion.denoise import denoise, pipeline_denoiser
from bitsfusion.errors import InputError
from bitsfusion.evaluation.noise import time_step_curve
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.sensitivity.jacobian import Jacobian
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.settings import JacobianSettings, NoiseErrorSettings
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.loop import train

from ..tiny.kinds import KINDS

CAPTIONS = ("red circle", "blue square", "red square", "circle")


class Captioned:
    """Random latents with captions, and sizes as images of 40 x 30 pixels have them."""

    fingerprint = "captioned"

    def __init__(self, pipeline) -> None:
        unet = pipeline_denoiser(pipeline)
        self.conditioner = conditioner_of(pipeline)
        self.shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        captions = [CAPTIONS[(step + index) % len(CAPTIONS)] for index in range(size)]
        sizes = torch.tensor([[30, 40, 0, 5]]).expand(size, 4) if self.conditioner.sized else None
        latents = torch.randn(size, *self.shape, generator=generator)
        return Batch(latents, self.conditioner.rows(captions), tuple(captions), sizes)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ("sdxl", "refiner", "lcm", "sd2")])
@pytest.mark.parametrize("stage", [1, 2])
def test_two_steps_are_trained(kind, stage, tmp_path):
    pipeline = KINDS[kind]()
    teacher = pipeline_denoiser(pipeline)
    student = copy.deepcopy(teacher)
    fake_quantize_model(student, dict.fromkeys(layers_to_assign(student), 2))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    config = TrainingConfig(stage=stage, train_batch_size=2, max_train_steps=2, learning_rate=1e-3, text_dropout=0.5)
    result = train(student, teacher if stage == 1 else None, pipeline, Captioned(pipeline), config, tmp_path)
    assert result.steps == 2 and result.loss > 0
    assert any(not torch.equal(value, before[name]) for name, value in result.student.state_dict().items())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ("sdxl", "refiner", "lcm", "sd2")])
def test_layers_are_measured_and_the_curve_is_drawn(kind):
    pipeline = KINDS[kind]()
    data, unet = Captioned(pipeline), pipeline_denoiser(pipeline)
    names = list(layers_to_assign(unet))
    one = NoiseError(pipeline, NoiseErrorSettings(samples=2, guidance=3.0), data).measure(names[-1], 1)
    errors = Jacobian(pipeline, JacobianSettings(samples=2, guidance=3.0), data).errors(names[-1:])
    assert one["mse"] > 0 and errors[names[-1], 1] > 0
    student = copy.deepcopy(unet)
    fake_quantize_model(student, dict.fromkeys(names, 1))
    assert all(error > 0 for _, error in time_step_curve(student, pipeline, data, points=2, each=2))


@pytest.mark.skipif("sdxl" not in KINDS, reason="no such kind")
def test_sizes_pooled_text_and_the_null_prompt_reach_the_denoiser():
    """The conditioning is what the pipeline's own code gives the UNet, for a caption and for the null prompt."""
    pipeline = KINDS["sdxl"]()
    conditioner, unet = conditioner_of(pipeline), pipeline.unet
    side = unet.config.sample_size
    seen = []
    handle = unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    options = {"num_inference_steps": 1, "guidance_scale": 3.0, "output_type": "latent"}
    pixels = side * pipeline.vae_scale_factor
    pipeline("red circle", height=pixels, width=pixels, **options)
    handle.remove()
    ours = [conditioner.null(1, (side, side)), conditioner.encode(conditioner.rows(["red circle"]), (side, side))]
    given = seen[0] | seen[0]["added_cond_kwargs"]
    for name in ("encoder_hidden_states", "text_embeds", "time_ids"):
        made = torch.cat([each.tensors.get(name, each.tensors.get(f"added_cond_kwargs.{name}")) for each in ours])
        torch.testing.assert_close(made, given[name].float(), atol=1e-5, rtol=1e-4)
    noisy = torch.randn(1, unet.config.in_channels, side, side)
    with torch.no_grad():
        assert denoise(unet, noisy, torch.tensor([5]), ours[1]).shape == noisy.shape


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ("inpainting", "instruct-pix2pix", "upscaler")])
def test_pipelines_that_take_an_image_are_one_line(kind):
    with pytest.raises(InputError, match="got a UNet"):
        conditioner_of(KINDS[kind]())
