"""One layer's codes, scales and bias."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from bitsfusion.calibration.codes import codes_by_columns, descended, inverse_factor
from bitsfusion.calibration.layer import calibrated_layer, squared_error, target_weights, weight_only_layer
from bitsfusion.calibration.moments import MomentSum, input_rows, output_rows
from bitsfusion.calibration.scales import output_error, refitted_scale, scale_by_output
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.numerics import half_levels, initial_scale, quantize

SETTINGS = CalibrationSettings()
KINDS = ["linear", "linear, no bias", "conv", "conv, groups"]


def made(kind: str) -> nn.Module:
    torch.manual_seed(1)
    return {
        "linear": lambda: nn.Linear(24, 10),
        "linear, no bias": lambda: nn.Linear(24, 10, bias=False),
        "conv": lambda: nn.Conv2d(6, 10, 3, padding=1),
        "conv, groups": lambda: nn.Conv2d(6, 10, 3, padding=1, groups=2),
    }[kind]()


def correlated(layer: nn.Module) -> torch.Tensor:
    """Inputs whose channels hang together and have means, as activations do."""
    torch.manual_seed(2)
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    mixed = torch.randn(64, 12, width) @ torch.randn(width, width) + 2 * torch.randn(width)
    return mixed if isinstance(layer, nn.Linear) else mixed.view(64, 3, 4, width).permute(0, 3, 1, 2)


def moments_of(layer: nn.Module, inputs: torch.Tensor):
    total = MomentSum({"layer": layer})
    total.add(input_rows(layer, inputs), [output_rows(layer, layer(inputs))])
    return total.moments()["layer"]


def applied(layer: nn.Module, result, inputs: torch.Tensor) -> torch.Tensor:
    rounded = copy.deepcopy(layer)
    rounded.weight.data = result.weight
    if result.bias is not None:
        rounded.bias.data = result.bias
    return rounded(inputs)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_outputs_are_nearer_than_with_the_weights_best_scale(kind, bits):
    layer = made(kind)
    inputs = correlated(layer)
    result = calibrated_layer("layer", layer, moments_of(layer, inputs), bits, SETTINGS)
    plain = weight_only_layer("layer", layer, bits)
    wanted = layer(inputs)
    error = (applied(layer, result, inputs) - wanted).square().mean()
    assert error < 0.9 * (applied(layer, plain, inputs) - wanted).square().mean()
    assert int(result.codes.abs().max()) <= half_levels(bits)
    assert torch.equal(quantize(result.weight, result.scale, bits), result.codes)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_told_is_the_error_made(kind):
    layer = made(kind)
    inputs = correlated(layer)
    moments = moments_of(layer, inputs)
    result = calibrated_layer("layer", layer, moments, 2, SETTINGS)
    wanted = output_rows(layer, layer(inputs))
    lost = (output_rows(layer, applied(layer, result, inputs)) - wanted).square().mean(0).sum()
    centre = wanted.mean(0) if layer.bias is not None else 0
    assert result.error == pytest.approx(float(lost / (wanted - centre).square().mean(0).sum()), rel=1e-3)


@torch.no_grad()
def test_the_mean_output_is_the_one_aimed_at():
    layer = made("conv")
    inputs = correlated(layer)
    result = calibrated_layer("layer", layer, moments_of(layer, inputs), 1, SETTINGS)
    wanted, got = (output_rows(layer, x).mean(0) for x in (layer(inputs), applied(layer, result, inputs)))
    assert torch.allclose(wanted, got, atol=1e-4)


@torch.no_grad()
def test_the_target_makes_good_for_changed_inputs():
    """What the original gave on its inputs, from inputs that were disturbed linearly: the right weights are known."""
    torch.manual_seed(0)
    inputs = torch.randn(500, 1, 8)
    layer, mixing = nn.Linear(8, 5, bias=False), torch.eye(8) + 0.3 * torch.randn(8, 8)
    total = MomentSum({"layer": layer})
    total.add(inputs @ mixing, [layer(inputs[:, 0])])
    found = total.moments()["layer"]
    target = target_weights(layer.weight.double(), found.inputs[0], found.cross[0], torch.tensor(1e-12))
    assert torch.allclose(target, torch.linalg.solve(mixing, layer.weight.t()).t().double(), atol=1e-4)


@torch.no_grad()
def test_dead_columns_and_an_input_that_is_always_zero():
    layer = nn.Linear(12, 6)
    inputs = torch.randn(80, 12)
    inputs[:, [3, 7]] = 0
    result = calibrated_layer("layer", layer, moments_of(layer, inputs), 2, SETTINGS)
    assert torch.isfinite(result.weight).all() and torch.isfinite(result.bias).all()
    nothing = calibrated_layer("layer", layer, moments_of(layer, torch.zeros(80, 12)), 4, SETTINGS)
    plain = weight_only_layer("layer", layer, 4)
    assert torch.allclose(nothing.bias, layer.bias) and nothing.error == 0
    assert (nothing.weight - layer.weight).square().sum() <= 1.05 * (plain.weight - layer.weight).square().sum()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_fewer_rows_than_columns(kind):
    """The moments are singular."""
    layer = made(kind)
    inputs = correlated(layer)[:1]
    if isinstance(layer, nn.Linear):
        inputs = inputs[:, :5]
    result = calibrated_layer("layer", layer, moments_of(layer, inputs), 3, SETTINGS)
    assert torch.isfinite(result.weight).all()
    assert result.error < 0.2


@torch.no_grad()
def test_a_channel_of_zeros_stays_zero():
    layer = nn.Linear(8, 4)
    layer.weight.data[2] = 0
    inputs = torch.randn(60, 8)
    result = calibrated_layer("layer", layer, moments_of(layer, inputs), 2, SETTINGS)
    assert torch.count_nonzero(result.weight[2]) == 0
    assert torch.isfinite(result.scale).all()


@torch.no_grad()
def test_more_damping_stays_nearer_to_the_weights():
    torch.manual_seed(3)
    layer, inputs = nn.Linear(16, 8), torch.randn(20, 16)
    moments = moments_of(layer, inputs)
    distances = []
    for damping in (1e-4, 1e-1, 1e2):
        result = calibrated_layer("layer", layer, moments, 3, SETTINGS.model_copy(update={"damping": damping}))
        distances.append(float((result.weight - layer.weight).square().sum()))
    assert distances[0] > distances[2]


@torch.no_grad()
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_each_part_lowers_the_error(bits):
    """Rounding alone, column by column, then descent and refitted scales: each at least as good as the last."""
    torch.manual_seed(4)
    rows = (torch.randn(400, 300) @ torch.randn(300, 300)).double()  # more columns than are treated at once
    moments, target = rows.t() @ rows / len(rows), torch.randn(20, 300).double()
    scale = scale_by_output(target, moments, initial_scale(target, bits), bits)

    def error(codes, scale):
        return float(output_error(target - codes * scale.double()[:, None], moments).sum())

    nearest = quantize(target, scale, bits).double()
    pushed = codes_by_columns(target, moments, scale, bits)
    moved = descended(pushed, target, moments, scale, bits)
    fitted = refitted_scale(moved, target, moments, scale)
    errors = [error(nearest, scale), error(pushed, scale), error(moved, scale), error(moved, fitted)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < errors[1]
    assert errors[3] <= errors[2] * (1 + 1e-6)


@torch.no_grad()
def test_columns_in_two_dimensions_against_all_codes():
    """Descent ends where no single code can be bettered; the best of all codes is not far."""
    torch.manual_seed(5)
    rows = (torch.randn(50, 3) @ torch.randn(3, 3)).double()
    moments, target, scale = rows.t() @ rows / 50, torch.randn(1, 3).double(), torch.tensor([0.5])
    codes = codes_by_columns(target, moments, scale, 1)
    for _ in range(5):
        codes = descended(codes, target, moments, scale, 1)
    found = output_error(target - codes * 0.5, moments)
    candidates = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=3))).double()
    every = output_error(target - candidates * 0.5, moments)
    single = [c for c in candidates if int((c != codes[0]).sum()) <= 1]
    assert all(output_error(target - c[None] * 0.5, moments) >= found - 1e-9 for c in single)
    assert found <= 3 * every.min() + 1e-9


def test_a_matrix_that_is_not_positive_is_damped():
    matrix = torch.diag(torch.tensor([1.0, 0.0, -1e-6], dtype=torch.float64))
    factor = inverse_factor(matrix)
    assert torch.isfinite(factor).all()


@torch.no_grad()
def test_squared_error_is_never_negative():
    layer = nn.Linear(4, 3)
    moments = moments_of(layer, torch.randn(30, 4))
    assert float(squared_error(layer.weight, moments, 0).max()) < 1e-6
    assert float(squared_error(layer.weight, moments, 0).min()) >= 0
