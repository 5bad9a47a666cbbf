import copy

import pytest
import torch
from torch import nn

from bitsfusion.errors import InputError
from bitsfusion.nn.replace import fake_quantize_model, fake_quantized_layers
from bitsfusion.numerics import ScaleInit, dequantize, initial_scale, quantize


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(24, 5, bias=False))


def test_layers_compute_with_rounded_weights(model):
    x = torch.randn(2, 3, 4, 4)
    reference = copy.deepcopy(model)
    for name, bits in (("0", 2), ("2", 1)):
        layer = reference.get_submodule(name)
        scale = initial_scale(layer.weight, bits, ScaleInit.EXACT)
        layer.weight.data = dequantize(quantize(layer.weight, scale, bits), scale)
    fake_quantize_model(model, {"0": 2, "2": 1}, ScaleInit.EXACT)
    assert torch.equal(model(x), reference(x))
    assert {name: layer.bits for name, layer in fake_quantized_layers(model).items()} == {"0": 2, "2": 1}


def test_parameters_are_taken_over_and_train(model):
    weight = model[0].weight
    fake_quantize_model(model, {"0": 3})
    assert model[0].weight is weight
    model(torch.randn(1, 3, 4, 4)).sum().backward()
    assert weight.grad is not None and model[0].scale.grad.shape == (6,)


def test_the_state_dict_loads_into_another_copy(model):
    other = copy.deepcopy(model)
    fake_quantize_model(model, {"0": 3, "2": 2})
    fake_quantize_model(other, {"0": 3, "2": 2}, ScaleInit.MINMAX)
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"7": 2}, "7: got no such layer, wanted a Linear or Conv2d"),
        ({"1": 2}, "1: got Flatten, wanted a Linear or Conv2d"),
        ({"0": 9}, "0: got 9 bits, wanted a whole number from 1 to 8"),
    ],
)
def test_a_wrong_recipe_leaves_the_model_alone(model, bits, message):
    with pytest.raises(InputError, match=message):
        fake_quantize_model(model, {"2": 2, **bits})
    assert not fake_quantized_layers(model)


def test_nan_weights_name_the_layer(model):
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"^2: weight: got 1 NaN"):
        fake_quantize_model(model, {"0": 2, "2": 2})
    assert not fake_quantized_layers(model)
