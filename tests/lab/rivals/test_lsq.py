"""LSQ: levels, and gradients against autograd of the formula written out (Esser et al., Eqs. 1 to 5)."""

import math

import pytest
import torch
from torch import nn

from bitsfusion.errors import InputError
from bitsfusion.nn.replace import fake_quantized_layers
from bitsfusion_lab.rivals.lsq import initial_step, level_range, lsq_model, lsq_quantize, stored_weights


@pytest.mark.parametrize(("bits", "low", "high"), [(2, -2, 1), (3, -4, 3), (4, -8, 7), (8, -128, 127)])
def test_levels_have_one_more_below_zero(bits, low, high):
    assert level_range(bits) == (low, high)
    weight = torch.linspace(-3 * 2**bits, 3 * 2**bits, 4001)[None]
    got = lsq_quantize(weight, torch.ones(1), bits).unique()
    assert torch.equal(got, torch.arange(low, high + 1).float())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3)], ids=str)
def test_gradients_are_autograds_of_the_formula(bits, shape):
    """Rounding as identity plus a constant, clipping as clamp, the step's gradient times g: torch does the rest."""
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    step = (torch.rand(shape[0], generator=generator, dtype=torch.float64) * 0.4 + 0.1).requires_grad_()
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    low, high = level_range(bits)
    g = 1 / math.sqrt(weight[0].numel() * high)

    scaled = (step * g + (step - step * g).detach()).reshape(-1, *[1] * (len(shape) - 1))
    clipped = (weight / scaled).clamp(low, high)
    formula = (clipped + (clipped.round() - clipped).detach()) * scaled
    wanted = torch.autograd.grad(formula, (weight, step), upstream)
    result = lsq_quantize(weight, step, bits)
    got = torch.autograd.grad(result, (weight, step), upstream)

    torch.testing.assert_close(result, formula)
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1])


def test_the_first_step():
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    assert torch.equal(initial_step(weight, 2), torch.tensor([4.0, 1.0]))
    assert torch.equal(initial_step(weight, 8), torch.tensor([4.0, 1.0]) / math.sqrt(127))


def test_what_is_stored_is_what_was_trained_with():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 4))
    lsq_model(model, {"0": 2, "2": 8})
    stored = stored_weights(model)
    for name, layer in fake_quantized_layers(model).items():
        assert torch.equal(stored[name].dense(), layer.quantized_weight())
        assert int(stored[name].codes.max()) < 2**layer.bits


def test_one_bit_is_refused():
    with pytest.raises(InputError, match="1 bit"):
        lsq_model(nn.Sequential(nn.Linear(2, 2)), {"0": 1})
