"""One layer's codes, scales and bias."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from bitsfusion.calibration.codes import codes_by_columns, descended
from bitsfusion.calibration.factor import cholesky_, factored, solved
from bitsfusion.calibration.layer import calibrated_layer, group_factors, target_weights, weight_only_layer
from bitsfusion.calibration.moments import MomentSum, input_rows, output_rows
from bitsfusion.calibration.scales import output_error, scale_by_output
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.errors import InputError
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


def calibrated(layer: nn.Module, inputs: torch.Tensor, bits: int, settings: CalibrationSettings = SETTINGS):
    moments = moments_of(layer, inputs)
    factors = group_factors(moments.inputs, settings.damping)
    return calibrated_layer("layer", layer, moments, factors, bits, settings)


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
    result = calibrated(layer, inputs, bits)
    plain = weight_only_layer("layer", layer, bits)
    wanted = layer(inputs)
    error = (applied(layer, result, inputs) - wanted).square().mean()
    assert error < 0.9 * (applied(layer, plain, inputs) - wanted).square().mean()
    assert int(result.codes.abs().max()) <= half_levels(bits)
    assert torch.equal(quantize(result.weight, result.scale, bits), result.codes.short())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_told_is_the_error_made(kind):
    layer = made(kind)
    inputs = correlated(layer)
    result = calibrated(layer, inputs, 2)
    wanted = output_rows(layer, layer(inputs))
    lost = (output_rows(layer, applied(layer, result, inputs)) - wanted).square().mean(0).sum()
    centre = wanted.mean(0) if layer.bias is not None else 0
    assert result.error == pytest.approx(float(lost / (wanted - centre).square().mean(0).sum()), rel=1e-3)


@torch.no_grad()
def test_the_mean_output_is_the_one_aimed_at():
    layer = made("conv")
    inputs = correlated(layer)
    result = calibrated(layer, inputs, 1)
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
    target = target_weights(layer.weight, found.cross[0], factored(found.inputs[0], 1e-12))
    assert torch.allclose(target, torch.linalg.solve(mixing, layer.weight.t()).t().double(), atol=1e-4)


@torch.no_grad()
def test_dead_columns_and_an_input_that_is_always_zero():
    layer = nn.Linear(12, 6)
    inputs = torch.randn(80, 12)
    inputs[:, [3, 7]] = 0
    result = calibrated(layer, inputs, 2)
    assert torch.isfinite(result.weight).all() and torch.isfinite(result.bias).all()
    nothing = calibrated(layer, torch.zeros(80, 12), 4)
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
    result = calibrated(layer, inputs, 3)
    assert torch.isfinite(result.weight).all()
    assert result.error < 0.2


@torch.no_grad()
def test_a_channel_of_zeros_stays_zero():
    layer = nn.Linear(8, 4)
    layer.weight.data[2] = 0
    inputs = torch.randn(60, 8)
    result = calibrated(layer, inputs, 2)
    assert torch.count_nonzero(result.weight[2]) == 0
    assert torch.isfinite(result.scale).all()


@torch.no_grad()
def test_more_damping_stays_nearer_to_the_weights():
    torch.manual_seed(3)
    layer, inputs = nn.Linear(16, 8), torch.randn(20, 16)
    distances = []
    for damping in (1e-4, 1e-1, 1e2):
        result = calibrated(layer, inputs, 3, SETTINGS.model_copy(update={"damping": damping}))
        distances.append(float((result.weight - layer.weight).square().sum()))
    assert distances[0] > distances[2]


def problem(columns: int, bits: int, outputs: int = 20):
    """Correlated inputs' moments, weights to round, a scale."""
    torch.manual_seed(4)
    rows = (torch.randn(columns + 100, columns) @ torch.randn(columns, columns)).double()
    moments, target = rows.t() @ rows / len(rows), torch.randn(outputs, columns).double()
    return moments, target, initial_scale(target, bits)


@torch.no_grad()
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_each_part_lowers_the_error(bits):
    """Rounding alone, column by column, then descent and refitted scales: each at least as good as the last."""
    moments, target, start = problem(300, bits)  # more columns than are treated at once
    factor = factored(moments, 1e-9)
    scale = scale_by_output(target, factor, start, bits)

    def error(codes, scale):
        return float(output_error(target - codes * scale.double()[:, None], moments).sum())

    nearest = quantize(target, scale, bits).double()
    pushed = codes_by_columns(target, factor, scale, bits)
    same, fitted, _ = descended(pushed, target, moments, scale, bits, sweeps=0)
    moved, last, through = descended(pushed, target, moments, scale, bits, sweeps=1)
    errors = [error(nearest, scale), error(pushed, scale), error(same, fitted), error(moved, last)]
    assert error(nearest, scale) <= error(quantize(target, start, bits).double(), start)
    assert errors[1] < 0.8 * errors[0]
    assert torch.equal(same, pushed) and errors[2] <= errors[1] * (1 + 1e-6)
    assert errors[3] < errors[2]
    assert torch.allclose(through, moved @ moments, rtol=1e-9, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("bits", [1, 3])
def test_the_column_pass_is_that_of_gptq(bits):
    """GPTQ as it is written down: the error of a column over U_jj is taken off the others, U^T U = H^-1."""
    moments, target, scale = problem(300, bits)
    factor = factored(moments, 0.01)
    found = codes_by_columns(target, factor, scale, bits)
    order = factor.order.flip(0)
    upper = torch.linalg.cholesky(torch.linalg.inv(moments[order][:, order]), upper=True)
    left, codes = target[:, order].clone(), torch.empty_like(target)
    for j in range(300):
        codes[:, j] = quantize(left[:, j : j + 1], scale, bits)[:, 0]
        error = (left[:, j] - codes[:, j] * scale.double()) / upper[j, j]
        left[:, j:] -= error[:, None] * upper[j, j:]
    assert torch.equal(found, codes[:, order.argsort()])


@torch.no_grad()
def test_columns_in_two_dimensions_against_all_codes():
    """Descent ends where no single code can be bettered; the best of all codes is not far."""
    torch.manual_seed(5)
    rows = (torch.randn(50, 3) @ torch.randn(3, 3)).double()
    moments, target, scale = rows.t() @ rows / 50, torch.randn(1, 3).double(), torch.tensor([0.5])
    codes = codes_by_columns(target, factored(moments.clone(), 1e-12), scale, 1)
    codes, last, _ = descended(codes, target, moments, scale, 1, sweeps=8)
    last = last.double()
    found = output_error(target - codes * last, moments)
    candidates = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=3))).double()
    every = output_error(target - candidates * last, moments)
    single = [c for c in candidates if int((c != codes[0]).sum()) <= 1]
    assert all(output_error(target - c[None] * last, moments) >= found - 1e-9 for c in single)
    assert found <= 3 * every.min() + 1e-9


@torch.no_grad()
@pytest.mark.parametrize("size", [5, 512, 1300])
def test_factor_and_solution_against_torchs_own(size):
    """Over blocks' ends, and with what is above the diagonal left as it comes."""
    torch.manual_seed(6)
    rows = torch.randn(size, 2 * size).double()
    matrix, right = rows @ rows.t() / size, torch.randn(7, size).double()
    lower = matrix.clone()
    assert cholesky_(lower)
    assert torch.allclose(lower.tril(), torch.linalg.cholesky(matrix), atol=1e-9)
    assert torch.allclose(solved(right.clone(), lower), torch.linalg.solve(matrix, right, left=False), atol=1e-8)


def test_a_matrix_that_is_not_positive_is_damped():
    matrix = torch.diag(torch.tensor([1.0, 0.0, -1e-3], dtype=torch.float64))
    factor = factored(matrix, 1e-6)
    assert torch.isfinite(factor.lower.tril()).all()
    assert float(factor.ridge) > 1e-3
    assert torch.equal(matrix.diagonal(), torch.tensor([1.0, 0.0, -1e-3], dtype=torch.float64) + factor.ridge)
    with pytest.raises(InputError, match="not finite"):
        factored(torch.full((3, 3), float("nan")), 0.03)


def test_rounding_alone_is_damped():
    """Inputs that do not vary leave nothing but rounding once they are centered: its diagonal is no measure."""
    for diagonal in (1e-9, -1e-9):
        matrix = torch.full((4, 4), 1e-6, dtype=torch.float64).fill_diagonal_(diagonal)
        factor = factored(matrix, 0.03)
        assert torch.linalg.eigvalsh(matrix).min() > 0 and torch.isfinite(factor.lower.tril()).all()
