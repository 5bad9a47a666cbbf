"""The vectors that weights are multiplied with, and their moments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitsfusion.calibration.moments import MomentSum, input_rows, output_rows, row_count, with_guided
from bitsfusion.errors import InputError

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 7, 6)),
    "linear, no bias": (lambda: nn.Linear(6, 5, bias=False), (4, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 7)),
    "conv, stride": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(0, 1)), (2, 4, 9, 8)),
    "conv, dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=(2, 1), padding=2), (2, 4, 6, 6)),
    "conv, groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
    "conv, depthwise": (lambda: nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False), (2, 4, 5, 5)),
    "conv, circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 5, 5)),
    "conv, one picture": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 5, 5)),
}


@pytest.fixture(params=LAYERS, ids=str)
def layer_and_inputs(request):
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


def test_rows_times_weights_are_the_outputs(layer_and_inputs):
    layer, inputs = layer_and_inputs
    output = layer(inputs)
    rows, wanted = input_rows(layer, inputs), output_rows(layer, output)
    groups = rows.shape[1]
    assert row_count(layer, output) == len(rows) == len(wanted)
    weight = layer.weight.flatten(1).unflatten(0, (groups, -1))
    made = torch.einsum("rgn,gon->rgo", rows, weight).flatten(1) + (0 if layer.bias is None else layer.bias)
    assert torch.allclose(made, wanted, atol=1e-5)


def test_chosen_places_are_rows_of_all(layer_and_inputs):
    layer, inputs = layer_and_inputs
    output = layer(inputs)
    places = torch.tensor([0, 3, row_count(layer, output) - 1])
    assert torch.equal(input_rows(layer, inputs, places), input_rows(layer, inputs)[places])
    assert torch.equal(output_rows(layer, output, places), output_rows(layer, output)[places])


def test_moments_do_not_depend_on_the_batches(layer_and_inputs):
    layer, inputs = layer_and_inputs
    rows, outputs = input_rows(layer, inputs), output_rows(layer, layer(inputs))
    whole, parts = MomentSum({"a": layer}), MomentSum({"a": layer})
    whole.add(rows, [outputs])
    for begin in range(0, len(rows), 4):
        parts.add(rows[begin : begin + 4], [outputs[begin : begin + 4]])
    one, other = whole.moments()["a"], parts.moments()["a"]
    assert torch.allclose(one.inputs, other.inputs, atol=1e-6)
    assert torch.allclose(one.cross, other.cross, atol=1e-6)
    centred = rows - rows.mean(0) if layer.bias is not None else rows
    direct = torch.einsum("rgn,rgm->gnm", centred, centred).double() / len(rows)
    assert torch.allclose(one.inputs, direct, atol=1e-5)


def test_layers_of_one_input_share_its_moments():
    torch.manual_seed(0)
    layers = {"q": nn.Linear(6, 5, bias=False), "k": nn.Linear(6, 3, bias=False), "v": nn.Linear(6, 4)}
    inputs = torch.randn(50, 6)
    together = MomentSum(layers)
    together.add(inputs[:, None], [layer(inputs) for layer in layers.values()])
    shared = together.moments()
    assert shared["q"].inputs is shared["k"].inputs
    for name, layer in layers.items():
        alone = MomentSum({name: layer})
        alone.add(inputs[:, None], [layer(inputs)])
        single = alone.moments()[name]
        for field in ("inputs", "cross", "input_mean", "output_mean", "energy"):
            assert torch.allclose(getattr(single, field), getattr(shared[name], field), atol=1e-6), (name, field)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_activations_that_are_not_finite_name_the_layer(value, where):
    layer = nn.Linear(3, 2)
    inputs, outputs = torch.ones(4, 1, 3), torch.ones(4, 2)
    (inputs if where == "inputs" else outputs).view(-1)[1] = value
    with pytest.raises(InputError, match=r"mid\.ff: got NaN or infinite activations"):
        MomentSum({"mid.ff": layer}).add(inputs, [outputs])


def test_no_activations():
    with pytest.raises(InputError, match="ff: got no activations"):
        MomentSum({"ff": nn.Linear(3, 2)}).moments()


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(4, 5, 3, padding=1, stride=2)], ids=["linear", "conv"])
@torch.no_grad()
def test_mixed_inputs_give_mixed_outputs(layer):
    torch.manual_seed(0)
    inputs = torch.randn(4, 7, 6) if isinstance(layer, nn.Linear) else torch.randn(4, 4, 6, 6)
    mixture = (-6.5, 7.5)
    mixed = with_guided(inputs, mixture)
    assert len(mixed) == 6 and torch.equal(mixed[:4], inputs)
    torch.testing.assert_close(layer(mixed), with_guided(layer(inputs), mixture), rtol=1e-4, atol=1e-4)
    assert with_guided(inputs, None) is inputs
    assert with_guided(inputs[:3], mixture) is not None and len(with_guided(inputs[:3], mixture)) == 3
