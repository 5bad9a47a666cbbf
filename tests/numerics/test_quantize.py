import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsfusion.numerics import dequantize, fake_quantize, half_levels, quantize

all_bits = pytest.mark.parametrize("bits", range(1, 9))


@all_bits
@pytest.mark.parametrize("shape", [(3, 5), (4, 3, 3, 3), (1, 1), (7, 1, 1, 1)], ids=str)
def test_fake_quantized_weight_is_the_dequantized_one(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    scale = torch.rand(shape[0], generator=torch.Generator().manual_seed(bits)) * 2 / half_levels(bits)
    scale[0] = 0.0 if bits % 2 else scale[0]
    codes = quantize(weight, scale, bits)
    assert codes.dtype == torch.int16
    assert codes.abs().max() <= half_levels(bits)
    assert torch.equal(fake_quantize(weight, scale, bits), dequantize(codes, scale))


@all_bits
def test_a_level_is_a_fixed_point(bits):
    half = half_levels(bits)
    codes = torch.arange(-half, half + 1, dtype=torch.int16).repeat(2, 1)
    scale = torch.tensor([0.37, 1e-4])
    assert torch.equal(quantize(dequantize(codes, scale), scale, bits), codes)


@given(st.integers(1, 8), st.integers(0, 10_000))
def test_no_level_is_nearer(bits, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, scale = torch.randn(2, 9, generator=generator), torch.rand(2, generator=generator) + 1e-3
    half = half_levels(bits)
    levels = torch.arange(-half, half + 1) * scale[:, None]
    nearest = (weight[:, :, None] - levels[:, None, :]).abs().amin(-1)
    error = (weight - dequantize(quantize(weight, scale, bits), scale)).abs()
    assert torch.all(error <= nearest + 1e-6)


def test_gradients_pass_inside_and_stop_outside_the_range():
    weight = torch.tensor([[0.4, -0.9, 5.0, -5.0]], requires_grad=True)
    scale = torch.tensor([1.0], requires_grad=True)
    fake_quantize(weight, scale, 1).sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    # Inside: level - w / s; outside: the end level. Normalised by sqrt(4 weights x half 1).
    inside = (0 - 0.4) + (-1 + 0.9)
    assert scale.grad.item() == pytest.approx((inside + 1 - 1) / 2)


def test_the_scale_gradient_is_the_slope_of_the_error_between_events():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, 64, generator=generator)
    target = torch.randn(1, 64, generator=generator)
    scale = torch.tensor([0.31], requires_grad=True)
    clipped = (weight / scale.detach()).abs() > 2
    fake_quantize(weight, scale, 2)[clipped].mul(target[clipped]).sum().backward()
    slope = (torch.sign(weight) * 2 * target)[clipped].sum() / (64 * 2) ** 0.5
    assert scale.grad.item() == pytest.approx(slope.item(), rel=1e-5)


def test_a_zero_scale_gives_zeros_and_finite_gradients():
    weight = torch.randn(2, 4, requires_grad=True)
    scale = torch.zeros(2, requires_grad=True)
    result = fake_quantize(weight, scale, 2)
    result.sum().backward()
    assert torch.equal(result, torch.zeros(2, 4))
    assert torch.isfinite(weight.grad).all() and torch.isfinite(scale.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_is_a_cast_of_float32(dtype):
    codes, scale = torch.tensor([[-3, 0, 4]]), torch.tensor([0.123])
    assert torch.equal(dequantize(codes, scale, dtype), (codes * scale[:, None]).to(dtype))
