import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsfusion.errors import InputError
from bitsfusion.numerics import ScaleInit, dequantize, half_levels, initial_scale, quantize
from bitsfusion.packing.entropy import entropy_bits

methods = pytest.mark.parametrize("method", ScaleInit, ids=lambda m: m.value)


def squared_error(weight, scale, bits):
    return (weight - dequantize(quantize(weight, scale, bits), scale)).double().square().sum(1)


def sqnr(weight, bits, method):
    error = squared_error(weight, initial_scale(weight, bits, method), bits).sum()
    return (10 * torch.log10(weight.double().square().sum() / error)).item()


@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 10_000), st.sampled_from(["normal", "heavy", "few"]))
def test_exact_never_loses(bits, width, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, width, generator=generator)
    if kind == "heavy":
        weight = weight**3
    elif kind == "few":
        weight = weight.round()
    exact = squared_error(weight, initial_scale(weight, bits, ScaleInit.EXACT), bits)
    for method in (ScaleInit.MINMAX, ScaleInit.ALTERNATING):
        other = squared_error(weight, initial_scale(weight, bits, method), bits)
        assert torch.all(exact <= other + 1e-5 * weight.double().square().sum(1))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_exact_is_as_good_as_a_fine_search(bits):
    weight = torch.randn(4, 50, generator=torch.Generator().manual_seed(bits))
    exact = squared_error(weight, initial_scale(weight, bits, ScaleInit.EXACT), bits)
    largest = weight.abs().amax(1)
    for fraction in torch.linspace(0.005, 2.2, 4000):
        searched = squared_error(weight, largest * fraction / half_levels(bits), bits)
        assert torch.all(exact <= searched + 1e-6)


@pytest.mark.parametrize(("bits", "wanted"), [(1, 7.2), (2, 10.8), (3, 15.1), (4, 19.8), (5, 24.8), (6, 29.9)])
def test_exact_on_gaussian_weights(bits, wanted):
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    assert sqnr(weight, bits, ScaleInit.EXACT) >= wanted


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_compact_saves_entropy_for_next_to_no_error(bits):
    weight = torch.randn(16, 2048, generator=torch.Generator().manual_seed(bits))
    exact, compact = (initial_scale(weight, bits, method) for method in (ScaleInit.EXACT, ScaleInit.COMPACT))
    assert torch.all(squared_error(weight, compact, bits) <= squared_error(weight, exact, bits) * 1.0025)
    saved = 1 - entropy_bits(quantize(weight, compact, bits), bits) / entropy_bits(quantize(weight, exact, bits), bits)
    assert saved > 0.002


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_alternating_beats_minmax_on_gaussian_weights(bits):
    weight = torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))
    assert sqnr(weight, bits, ScaleInit.ALTERNATING) > sqnr(weight, bits, ScaleInit.MINMAX) + 1


def test_alternating_is_equation_five():
    weight = torch.tensor([[0.9, -0.2, 0.05, 2.0]])
    scale = weight.abs().amax(1) / 2
    for _ in range(10):
        levels = torch.clamp(torch.round(weight / scale[:, None]), -2, 2)
        scale = (weight * levels).sum(1) / (levels * levels).sum(1)
    assert torch.allclose(initial_scale(weight, 2, ScaleInit.ALTERNATING), scale)


@methods
@pytest.mark.parametrize("bits", range(1, 9))
def test_zero_constant_and_single_weights(method, bits):
    assert torch.equal(initial_scale(torch.zeros(2, 5), bits, method), torch.zeros(2))
    for weight in (torch.full((1, 7), -0.3), torch.tensor([[0.7]]), torch.tensor([[1e-30]])):
        scale = initial_scale(weight, bits, method)
        assert torch.allclose(dequantize(quantize(weight, scale, bits), scale), weight, rtol=1e-5, atol=0)


@methods
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(method, bad):
    weight = torch.randn(3, 4)
    weight[1, 2] = bad
    with pytest.raises(InputError, match="got 1 NaN or infinite values of 12, wanted finite weights"):
        initial_scale(weight, 2, method)


@methods
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (5,)], ids=str)
def test_empty_and_flat_weights_are_refused(method, shape):
    with pytest.raises(InputError, match="wanted"):
        initial_scale(torch.zeros(shape), 2, method)


@methods
def test_half_precision_weights_give_float32_scales(method):
    weight = torch.randn(2, 3, 3, 3)
    assert initial_scale(weight.half(), 2, method).dtype == torch.float32
    assert initial_scale(weight.half(), 2, method).shape == (2,)
