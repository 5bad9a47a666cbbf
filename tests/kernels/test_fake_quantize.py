"""The compiled fake quantization against the reference: values bit for bit, gradients to rounding."""

from __future__ import annotations

import pytest
import torch

from bitsfusion import numerics
from bitsfusion.kernels import fake_quantize as fake_quantize_module
from bitsfusion.kernels.cpu.library import Library, library
from bitsfusion.kernels.fake_quantize import fake_quantize
from bitsfusion.numerics import half_levels, initial_scale

SHAPES = [(1, 1), (3, 5), (2, 16), (5, 17), (4, 3, 3, 3), (7, 1, 1, 1), (33, 1031), (64, 320, 3, 3)]
needs_library = pytest.mark.skipif(not isinstance(library(), Library), reason=str(library()))


def case(shape: tuple[int, ...], bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, scale (positive, negative, zero) and gradient; weights on levels, halfway between two and far outside."""
    generator = torch.Generator().manual_seed(bits)
    weight, grad = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    scale = initial_scale(weight, bits) * torch.where(torch.rand(shape[0], generator=generator) < 0.2, -0.5, 1)
    if shape[0] > 2:
        scale[1] = 0
    spread = scale.reshape(-1, *[1] * (weight.dim() - 1)) * torch.randint(-3, 4, shape, generator=generator) / 2
    weight = torch.where(torch.rand(shape, generator=generator) < 0.3, spread, weight)
    weight.view(-1)[-1] = 1e30
    return weight, scale, grad


def run(function, weight, scale, bits, grad):
    weight, scale = weight.clone().requires_grad_(), scale.clone().requires_grad_()
    result = function(weight, scale, bits)
    result.backward(grad)
    return result.detach(), weight.grad, scale.grad


def test_the_compiled_form_is_used() -> None:
    if isinstance(library(), Library):
        weight, scale, _ = case((3, 5), 2)
        assert fake_quantize_module._compiled(weight, scale) is not None


@needs_library
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(shape: tuple[int, ...], bits: int) -> None:
    weight, scale, grad = case(shape, bits)
    value, grad_weight, grad_scale = run(fake_quantize, weight, scale, bits, grad)
    wanted, wanted_weight, wanted_scale = run(numerics.fake_quantize, weight, scale, bits, grad)
    assert torch.equal(value, wanted)
    assert torch.equal(value, numerics.dequantize(numerics.quantize(weight, scale, bits), scale))
    assert torch.equal(grad_weight, wanted_weight)
    rounding = 1e-5 * half_levels(bits) * grad.abs().flatten(1).sum(1) / (weight[0].numel() * half_levels(bits)) ** 0.5
    assert (grad_scale - wanted_scale).abs().le(rounding).all()


@needs_library
def test_results_do_not_depend_on_threads() -> None:
    weight, scale, grad = case((64, 320, 3, 3), 3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(fake_quantize, weight, scale, 3, grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    "make", [lambda w: w.double(), lambda w: w.t().contiguous().t()], ids=["float64", "transposed"]
)
def test_what_is_not_compiled_for_is_left_to_the_reference(make) -> None:
    weight, scale, grad = case((6, 10), 2)
    weight = make(weight)
    ours = run(fake_quantize, weight, scale, 2, grad.to(weight.dtype))
    theirs = run(numerics.fake_quantize, weight, scale, 2, grad.to(weight.dtype))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_gradient_of_any_strides_will_do() -> None:
    weight, scale, _ = case((4, 6), 2)
    expanded, plain = torch.ones(()).expand(4, 6), torch.ones(4, 6)
    ours = run(fake_quantize, weight, scale, 2, expanded)
    assert all(torch.equal(a, b) for a, b in zip(ours, run(fake_quantize, weight, scale, 2, plain), strict=True))


def test_a_weight_that_is_not_finite_shows() -> None:
    weight = torch.tensor([[0.3, float("nan"), float("inf")]])
    value = fake_quantize(weight, torch.tensor([0.5]), 1)
    assert value.isnan().tolist() == [[False, True, False]]
