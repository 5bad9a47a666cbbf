"""Text encoder and VAE calibrated on the embedded model: nearer to the original than weights rounded alone."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL

from bitsfusion.architectures.registry import ARCHITECTURES, model_layers
from bitsfusion.calibration.components import calibrate_component, component_calls, halves
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.embedded.quick import QUICK
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.nn.rounded import put_rounded
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.components import WHOLE, WHOLE_CALIBRATED, component_bits
from bitsfusion.runs.prompts import prompts_of

PROMPTS = ("a red circle", "two blue squares", "a green triangle left of a red square", "three circles")


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("embedded")


@pytest.fixture(scope="module")
def calls(pipeline):
    settings = CalibrationSettings(samples=8, steps=2, batch_size=4)
    return component_calls(pipeline, ["text_encoder", "vae"], PROMPTS, settings)


def test_calls_are_those_of_drawing(pipeline, calls):
    assert list(calls["text_encoder"]) == [""] and set(calls["vae"]) == {"decoder", "encoder"}
    tokens = [call.args[0] for call in calls["text_encoder"][""]]
    assert len(tokens) == 4 and all(len(batch) == 4 for batch in tokens)  # captions and empty captions of two batches
    both = halves(pipeline.vae)
    for latents, pictures in zip(calls["vae"]["decoder"], calls["vae"]["encoder"], strict=True):
        with torch.no_grad():
            assert torch.equal(pictures.args[0], pipeline.vae.decode(latents.args[0]).sample)
            encoded = pipeline.vae.encode(pictures.args[0]).latent_dist.parameters
            assert torch.equal(both["encoder"](pictures.args[0]), encoded)


@torch.no_grad()
@pytest.mark.parametrize("name", ["text_encoder", "vae"])
def test_outputs_are_nearer_than_with_the_weights_alone(pipeline, calls, name):
    model = pipeline.components[name].eval()
    layers = model_layers(model, ARCHITECTURES[type(model).__name__])
    bits = {layer: 3 for layer in layers if not isinstance(model.get_submodule(layer), torch.nn.Embedding)}
    made = calibrate_component(model, bits, calls[name], CalibrationSettings())
    assert set(made.layers) == set(bits) and not made.notes
    plain, calibrated = copy.deepcopy(model), copy.deepcopy(model)
    fake_quantize_model(plain, bits)
    put_rounded(calibrated, made.layers)
    other = copy.copy(pipeline)
    settings = CalibrationSettings(samples=4, steps=2, seed=9)
    held_out = component_calls(other, [name], ("a yellow square right of a blue circle",), settings)[name]
    for part, of_part in held_out.items():
        call = of_part[0]
        before, *after = (
            (halves(student)[part] if part else student)(*call.args, **call.kwargs)
            for student in (model, plain, calibrated)
        )
        errors = [float((_states(result) - _states(before)).square().mean()) for result in after]
        assert errors[1] < 0.8 * errors[0], (part, errors)


@torch.no_grad()
def test_a_text_encoder_of_fewer_bits_is_nearer_once_calibrated(pipeline):
    """At the bits that `init --whole --calibrate` takes, against those of `init --whole`, on test prompts."""
    name, settings = "text_encoder", CalibrationSettings(samples=48, steps=1)
    calls = component_calls(pipeline, [name], prompts_of("embedded"), settings)[name]
    texts = world_prompts(QUICK, "test", 4, seed=1024).texts
    (held_out, *_) = component_calls(pipeline, [name], texts, CalibrationSettings(samples=24, steps=1))[name][""]
    model = pipeline.text_encoder.eval()
    plain, calibrated = (
        {
            layer: b
            for layer, b in component_bits(
                model, ARCHITECTURES[type(model).__name__], others.text_encoder, 8, lambda *_: ({}, {})
            )[0].items()
            if not isinstance(model.get_submodule(layer), torch.nn.Embedding)
        }
        for others in (WHOLE, WHOLE_CALIBRATED)
    )
    assert sum(calibrated.values()) < sum(plain.values())
    students = copy.deepcopy(model), copy.deepcopy(model)
    fake_quantize_model(students[0], plain)
    put_rounded(students[1], calibrate_component(model, calibrated, calls, settings).layers)
    wanted, *got = (_states(each(*held_out.args, **held_out.kwargs)) for each in (model, *students))
    errors = [float((states - wanted).square().mean()) for states in got]
    assert errors[1] < errors[0], errors


def _states(result):
    return result if isinstance(result, torch.Tensor) else result[0]


def test_halves_of_other_autoencoders():
    """Those without convolutions at the latents, and with."""
    torch.manual_seed(0)
    small = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, use_quant_conv=False, use_post_quant_conv=False)
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(halves(small)["decoder"](latents), small.decode(latents).sample)
    deep = AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
    )
    with torch.no_grad():
        assert torch.equal(halves(deep)["decoder"](latents), deep.decode(latents).sample)
    assert not halves(torch.nn.Linear(2, 2))
