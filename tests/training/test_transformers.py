"""Training, analysis and the time-step curve on every class of diffusion transformer."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderTiny

from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.data.batches import Batch
from bitsfusion.data.latents import encode_images, latent_shape
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.errors import InputError
from bitsfusion.evaluation.noise import time_step_curve
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.sensitivity.jacobian import Jacobian
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.settings import JacobianSettings, NoiseErrorSettings
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.loop import train

from ..tiny.transformers import CONFIGS, build_transformer_pipeline

CAPTIONS = ("red circle", "blue square", "red square", "circle")
CHANNELS = {"Flux2Transformer2DModel": 16}
"""Of the latents as the model is given them; 4 in the others."""


class Captioned:
    """Random latents with captions."""

    fingerprint = "captioned"

    def __init__(self, pipeline, name) -> None:
        self.conditioner = conditioner_of(pipeline)
        self.shape = (CHANNELS.get(name, 4), 4, 4)
        self.rows = self.conditioner.rows(CAPTIONS)

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        chosen = [(step + index) % len(CAPTIONS) for index in range(size)]
        rows = {name: tensor[chosen] for name, tensor in self.rows.items()}
        return Batch(torch.randn(size, *self.shape, generator=generator), rows, tuple(CAPTIONS[i] for i in chosen))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_student_is_trained_in_both_stages(name, tmp_path):
    pipeline = build_transformer_pipeline(name)
    teacher = pipeline.transformer
    student = copy.deepcopy(teacher)
    fake_quantize_model(student, dict.fromkeys(layers_to_assign(student), 2))
    data = Captioned(pipeline, name)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    for stage in (1, 2):
        config = TrainingConfig(stage=stage, train_batch_size=2, max_train_steps=2, text_dropout=0.5)
        result = train(student, teacher if stage == 1 else None, pipeline, data, config, tmp_path / str(stage))
        assert result.steps == 2 and result.loss > 0
    assert any(not torch.equal(value, before[key]) for key, value in result.student.state_dict().items())


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_measured_and_the_curve_is_drawn(name):
    pipeline = build_transformer_pipeline(name)
    data, model = Captioned(pipeline, name), pipeline.transformer
    names = list(layers_to_assign(model))
    measured = NoiseError(pipeline, NoiseErrorSettings(samples=2, guidance=3.0), data)
    errors = Jacobian(pipeline, JacobianSettings(samples=2, guidance=3.0), data).errors(names)
    modulation = [name for name, layer in layers_to_assign(model).items() if layer.kind == "modulation"]
    for name in {names[0], *modulation[:2]}:  # a first block's is used; what a last one does with the text may not be
        assert measured.measure(name, 1)["mse"] > 0 and errors[name, 1] > 0, name
    student = copy.deepcopy(model)
    fake_quantize_model(student, dict.fromkeys(names, 1))
    assert all(error > 0 for _, error in time_step_curve(student, pipeline, data, points=2, each=2))


@pytest.mark.parametrize(
    "name",
    ["Flux2Transformer2DModel", "SanaTransformer2DModel", "QwenImageTransformer2DModel", "FluxTransformer2DModel"],
)
def test_pictures_are_encoded_as_the_pipeline_decodes(name):
    """What a pipeline makes of our latents, when it only decodes, is what its VAE makes of its own."""
    pipeline = build_transformer_pipeline(name)
    vae, pixels = pipeline.vae, torch.randn(2, 3, 16, 16).clamp(-1, 1)
    if name == "Flux2Transformer2DModel":
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
    latents = encode_images(vae, pixels)
    assert latents.shape[1:] == latent_shape(vae, 16)
    with torch.no_grad():
        if name == "SanaTransformer2DModel":
            wanted, own = vae.encode(pixels).latent, latents / vae.config.scaling_factor
        elif name == "QwenImageTransformer2DModel":
            wanted = vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
            own = latents * torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)
            own = own + torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)
        elif name == "Flux2Transformer2DModel":
            wanted, own = pipeline._encode_vae_image(pixels, None), latents
        else:
            wanted = vae.encode(pixels).latent_dist.mode()
            own = latents / vae.config.scaling_factor + vae.config.shift_factor
    assert torch.allclose(own, wanted, atol=1e-5)


def test_images_of_other_vaes_are_one_line():
    with pytest.raises(InputError, match="got a AutoencoderTiny, wanted one of AutoencoderKL"):
        encode_images(AutoencoderTiny(), torch.zeros(1, 3, 16, 16))
