import copy

import pytest
import torch
from diffusers import DDPMScheduler

from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.data.drawn import DrawnData
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.diffusion.denoise import with_denoiser
from bitsfusion.evaluation.noise import make_probe, mean_squared, predict, time_step_curve
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.pipelines.load import load_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("embedded")


@pytest.fixture(scope="module")
def data(pipeline):
    return DrawnData(pipeline.vae, conditioner_of(pipeline), pool=64)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def predicting(request, pipeline):
    """The pipeline as one that predicts the noise, and as one that predicts v."""
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=request.param)
    made = with_denoiser(pipeline, pipeline.unet)
    made.scheduler = scheduler
    return made


def test_the_target_leads_back_to_the_latents(predicting, data):
    probe = make_probe(data, predicting, 8, seed=3)
    latents = data.batch(3, 0, 1, 8).latents
    signal = predicting.scheduler.alphas_cumprod[probe.samples.timesteps][:, None, None, None]
    if predicting.scheduler.config.prediction_type == "epsilon":
        restored = (probe.samples.noisy - (1 - signal).sqrt() * probe.target) / signal.sqrt()
    else:
        restored = signal.sqrt() * probe.samples.noisy - (1 - signal).sqrt() * probe.target
    assert torch.allclose(restored, latents, atol=1e-3)


def test_latent_weight_is_the_error_of_the_latents(predicting, data):
    """Equation 9: an error of the prediction, and the error of the latents that it causes."""
    probe = make_probe(data, predicting, 8, seed=3)
    signal = predicting.scheduler.alphas_cumprod[probe.samples.timesteps][:, None, None, None]
    error = torch.randn_like(probe.target) * 0.1
    if predicting.scheduler.config.prediction_type == "epsilon":
        caused = -(1 - signal).sqrt() * error / signal.sqrt()
    else:
        caused = -(1 - signal).sqrt() * error
    by_formula = error.square().mean((1, 2, 3)) * probe.latent_weight
    assert torch.allclose(caused.square().mean((1, 2, 3)), by_formula, rtol=1e-4)


def test_fewer_bits_err_more_at_every_noise_level(pipeline, data):
    curves = []
    for bits in (2, 5):
        student = copy.deepcopy(pipeline.unet)
        fake_quantize_model(student, dict.fromkeys(layers_to_assign(student), bits))
        curve = time_step_curve(student, pipeline, data, points=4)
        assert [step for step, _ in curve] == [249, 499, 749, 999]
        curves.append([error for _, error in curve])
    assert all(two > five > 0 for two, five in zip(*curves, strict=True))


def test_a_model_agrees_with_itself(predicting, data):
    probe = make_probe(data, predicting, 70, seed=1)
    predicted = predict(predicting.unet, probe)
    assert predicted.shape == probe.target.shape
    assert mean_squared(predicted, predict(copy.deepcopy(predicting.unet), probe)) == 0
    assert len(set(probe.samples.timesteps.tolist())) == 70
