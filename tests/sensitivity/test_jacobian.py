"""The first-order estimate against forward-mode differentiation and against the noise error itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.calibration.alone import calibrated_alone
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import trajectories
from bitsfusion.errors import InputError
from bitsfusion.numerics import ScaleInit, dequantize, initial_scale, quantize
from bitsfusion.sensitivity.jacobian import Jacobian
from bitsfusion.sensitivity.measure import analyze
from bitsfusion.sensitivity.settings import CalibratedSettings, JacobianSettings

from ..tiny.pipeline import build_one_block_pipeline
from .random_data import RandomData

NAMES = {"model": "tiny", "source_sha256": "f" * 64}
LAYERS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",  # sees the text alone
    "down_blocks.0.resnets.0.conv1",
    "up_blocks.0.resnets.0.conv_shortcut",
)


def exact(pipeline, guided, layer, bits):
    """||J dw||^2 per value by forward-mode differentiation, for all samples together."""
    unet, name = pipeline.unet, f"{layer}.weight"
    weight = unet.get_parameter(name).detach()
    scale = initial_scale(weight, bits, ScaleInit.EXACT)
    change = dequantize(quantize(weight, scale, bits), scale) - weight
    both = guided.both()
    text = both.conditioning.tensors["encoder_hidden_states"]

    def answer(value):
        output = functional_call(unet, {name: value}, (both.noisy, both.timesteps, text)).sample
        return guided.combine(output)

    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward mode
        return float(jvp(answer, (weight,), (change,))[1].detach().square().mean())


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_is_an_unbiased_estimate_of_the_squared_directional_derivative(pipeline, guidance):
    settings = JacobianSettings(samples=800, batch_size=200, guidance=guidance)
    method = Jacobian(pipeline, settings, RandomData())
    got = method.errors(LAYERS)
    assert set(got) == {(layer, bits) for layer in LAYERS for bits in (1, 2, 3)}
    for layer in LAYERS:
        for bits in (1, 3):
            # Of 800 draws: five standard errors, for draws up to twice as spread as normal ones of one size.
            wanted = exact(pipeline, method.inputs, layer, bits)
            assert got[layer, bits] == pytest.approx(wanted, rel=5 * (2 * 2 / 800) ** 0.5), (layer, bits)


def test_after_a_calibration_it_is_what_is_left_of_weights_and_biases(pipeline):
    calibration = CalibrationSettings(samples=4, steps=2, size=8)
    draws = {"samples": 800, "batch_size": 200, "guidance": 4.0}
    settings = CalibratedSettings(**draws, prompts=("a", "b"), calibration=calibration)
    method, before = Jacobian(pipeline, settings, RandomData()), copy.deepcopy(pipeline.unet.state_dict())
    got = method.errors(LAYERS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.unet.state_dict().items())
    plain = Jacobian(pipeline, JacobianSettings(**draws), RandomData()).errors(LAYERS)
    unet, both = pipeline.unet, method.inputs.both()
    text = both.conditioning.tensors["encoder_hidden_states"]
    calls = trajectories(pipeline, unet, settings.prompts, calibration)
    for layer in LAYERS:
        made = calibrated_alone(unet, [layer], (1,), calls, calibration)[layer, 1]
        kinds = {"weight": made.weight, **({} if made.bias is None else {"bias": made.bias})}
        own = {f"{layer}.{kind}": unet.get_parameter(f"{layer}.{kind}").detach() for kind in kinds}
        change = {f"{layer}.{kind}": value - own[f"{layer}.{kind}"] for kind, value in kinds.items()}

        def answer(values):
            output = functional_call(unet, values, (both.noisy, both.timesteps, text)).sample
            return method.inputs.combine(output)

        with sdpa_kernel(SDPBackend.MATH):
            wanted = float(jvp(answer, (own,), (change,))[1].detach().square().mean())
        assert got[layer, 1] == pytest.approx(wanted, rel=5 * (2 * 2 / 800) ** 0.5), layer
    assert sum(got[layer, 2] for layer in LAYERS) < sum(plain[layer, 2] for layer in LAYERS)


def test_does_not_depend_on_which_layers_are_asked_for(pipeline):
    method = Jacobian(pipeline, JacobianSettings(samples=4, batch_size=2), RandomData())
    every = method.errors(list(layers_to_assign(pipeline.unet)))
    for key, value in method.errors(LAYERS[1:2]).items():
        assert value == every[key]


def test_writes_a_table_and_leaves_the_unet_alone(pipeline, tmp_path):
    before = copy.deepcopy(pipeline.unet.state_dict())
    settings = JacobianSettings(samples=4, batch_size=3)
    table = analyze(pipeline, settings, tmp_path / "s.json", RandomData(), **NAMES)
    layers = layers_to_assign(pipeline.unet)
    assert [(row.layer, row.bits) for row in table.rows] == [(n, b) for n in layers for b in (1, 2, 3)]
    assert table.method == "jacobian" and all(row.mse > 0 and row.psnr is None for row in table.rows)
    after = pipeline.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pipeline.unet.parameters())
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_names_a_layer_without_a_scale():
    pipeline = build_one_block_pipeline()
    with torch.no_grad():
        pipeline.unet.get_submodule(LAYERS[1]).weight[0, 0, 0, 0] = torch.inf
    method = Jacobian(pipeline, JacobianSettings(samples=1), RandomData())
    with pytest.raises(InputError, match=r"down_blocks\.0\.resnets\.0\.conv1: .*infinite"):
        method.errors(LAYERS)
