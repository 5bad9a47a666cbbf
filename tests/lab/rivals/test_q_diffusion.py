"""AdaRound and block reconstruction: never worse than nearest; shortcut splitting changes nothing in full precision."""

import copy

import pytest
import torch
from torch.nn import functional

from bitsfusion.architectures.registry import model_layers
from bitsfusion_lab.rivals.adaround import Rounding, learn_rounding
from bitsfusion_lab.rivals.calibration import predictions
from bitsfusion_lab.rivals.q_diffusion import quantize_unet, shortcut_groups, units


@pytest.mark.parametrize("groups", [(), (5, 3)], ids=["one", "split"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_grid_reaches_from_least_to_largest(bits, groups):
    torch.manual_seed(bits)
    weight = torch.randn(6, 8, 3, 3)
    rounding = Rounding(weight, bits, groups)
    half_a_step = rounding._scale / 2
    # A zero point that is rounded shifts the grid by up to half a step at one end.
    assert ((rounding.nearest() - weight).abs() <= 2.001 * half_a_step).all()
    torch.testing.assert_close(
        rounding.soft(),
        weight.clamp(rounding.nearest() - half_a_step, rounding.nearest() + half_a_step),
        atol=float(half_a_step.max()),
        rtol=0,
    )
    assert rounding.scale.shape == (max(1, len(groups)), 6)
    stored = rounding.stored()
    assert torch.equal(stored.dense(), rounding.hard())
    assert torch.equal(rounding.hard(), rounding.nearest())


def test_soft_rounding_begins_at_the_weight():
    torch.manual_seed(0)
    weight = torch.randn(4, 30)
    rounding = Rounding(weight, 6)
    inside = (weight > weight.amin(1, keepdim=True)) & (weight < weight.amax(1, keepdim=True) - rounding._scale)
    assert inside.float().mean() > 0.8
    torch.testing.assert_close(rounding.soft()[inside], weight[inside], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("iterations", [0, 1, 200])
def test_learned_rounding_is_never_worse_than_nearest(iterations):
    torch.manual_seed(1)
    weight, inputs = torch.randn(8, 40), torch.randn(64, 40) @ torch.randn(40, 40)
    target = functional.linear(inputs, weight)
    rounding = Rounding(weight, 4)

    def output(weights, chosen):
        return functional.linear(inputs[chosen], weights["w"])

    nearest, learned = learn_rounding({"w": rounding}, output, target, iterations, torch.Generator().manual_seed(0))
    errors = [(functional.linear(inputs, w) - target).square().mean() for w in (rounding.nearest(), rounding.hard())]
    assert nearest == pytest.approx(float(errors[0]), rel=1e-5)
    assert learned == pytest.approx(float(errors[1]), rel=1e-5)
    assert learned <= nearest
    if iterations == 200:
        assert learned < 0.97 * nearest


def test_shortcut_parts_are_those_of_the_concatenation(unet, calibration, monkeypatch):
    """What the up blocks really concatenate, seen from outside."""
    seen, cat = [], torch.cat

    def watch(tensors, dim=0, **options):
        if dim == 1 and len(tensors) == 2 and tensors[0].dim() == 4:
            seen.append(tuple(tensor.shape[1] for tensor in tensors))
        return cat(tensors, dim=dim, **options)

    monkeypatch.setattr(torch, "cat", watch)
    with torch.no_grad():
        next(calibration.split(1)).predict(unet)
    groups = shortcut_groups(unet)
    assert [parts for name, parts in groups.items() if name.endswith("conv1")] == seen
    assert {name.rpartition(".")[2] for name in groups} == {"conv1", "conv_shortcut"}


def test_splitting_is_exact_in_full_precision(unet):
    """conv(W, [a, b]) = conv(W_a, a) + conv(W_b, b): quantizing the parts apart leaves nothing else to change."""
    torch.manual_seed(2)
    for name, parts in shortcut_groups(unet).items():
        layer = unet.get_submodule(name)
        inputs = torch.randn(2, sum(parts), 4, 4)
        weights, pieces = layer.weight.split(list(parts), dim=1), inputs.split(list(parts), dim=1)
        apart = sum(functional.conv2d(x, w, padding=layer.padding) for x, w in zip(pieces, weights, strict=True))
        torch.testing.assert_close(apart + layer.bias[:, None, None], layer(inputs), atol=1e-5, rtol=1e-5)
        fine = Rounding(layer.weight, 8, parts).stored().dense()
        assert (fine - layer.weight).abs().max() < 0.02 * layer.weight.abs().max()


def test_every_layer_is_in_one_unit(unet, calibration):
    order = units(unet, calibration)
    for name in model_layers(unet):
        assert sum(name == unit or name.startswith(f"{unit}.") for unit in order) == 1
    assert order.index("conv_in") < order.index("down_blocks.0.resnets.0") < order.index("mid_block.resnets.0")
    assert order.index("mid_block.resnets.1") < order.index("up_blocks.0.resnets.0") < order.index("conv_out")


@pytest.mark.slow
def test_the_whole_unet_beats_nearest_rounding(unet, calibration):
    target, before = predictions(unet, calibration), copy.deepcopy(unet.state_dict())
    errors = {}
    for iterations in (0, 20):
        made = quantize_unet(unet, calibration, 3, iterations=iterations)
        assert made.keys() == model_layers(unet).keys()
        assert {made["conv_in"].bits, made["conv_out"].bits} == {8}
        model = copy.deepcopy(unet)
        for name, weight in made.items():
            model.get_submodule(name).weight.data = weight.dense()
        errors[iterations] = float((predictions(model, calibration) - target).square().mean())
    assert errors[20] < 0.9 * errors[0]
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
