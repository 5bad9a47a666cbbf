"""Adapters: merged equals beside the weight; they alone train, and nothing of them is left in the file."""

import copy

import torch
from torch import nn
from torch.nn import functional

from bitsfusion_lab.rivals.efficient_dm import adapt_model, stored_weights
from bitsfusion_lab.rivals.lsq import initial_step, lsq_quantize


def adapted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(6 * 9, 5))
    dense = copy.deepcopy(model)
    adapt_model(model, {"0": 8, "3": 8}, rank=3)
    return dense, model


def test_it_begins_as_the_weight():
    dense, model = adapted()
    for name in ("0", "3"):
        weight = dense.get_submodule(name).weight
        assert torch.equal(model.get_submodule(name).merged(), weight)
        wanted = lsq_quantize(weight, initial_step(weight, 8), 8)
        assert torch.equal(model.get_submodule(name).quantized_weight(), wanted)


def test_merged_is_the_weight_and_the_adapter_beside_it():
    """f(x; W + u B A) = f(x; W) + u B (A x), the second way through two thin layers."""
    _, model = adapted()
    for name in ("0", "3"):
        nn.init.normal_(model.get_submodule(name).up)
    conv, linear = model[0], model[3]
    images, rows = torch.randn(2, 4, 3, 3), torch.randn(2, 54)
    thin = functional.conv2d(images, conv.down.reshape(-1, 4, 3, 3), padding=1)
    beside = functional.conv2d(images, conv.weight, conv.bias, padding=1)
    beside = beside + conv.unit * functional.conv2d(thin, conv.up[:, :, None, None])
    torch.testing.assert_close(
        functional.conv2d(images, conv.merged(), conv.bias, padding=1), beside, atol=1e-4, rtol=1e-4
    )
    beside = functional.linear(rows, linear.weight, linear.bias) + linear.unit * (rows @ linear.down.T) @ linear.up.T
    torch.testing.assert_close(functional.linear(rows, linear.merged(), linear.bias), beside, atol=1e-4, rtol=1e-4)


def test_only_adapters_and_step_sizes_train():
    _, model = adapted()
    names = {name for name, _ in model.named_parameters()}
    assert names == {f"{layer}.{part}" for layer in ("0", "3") for part in ("scale", "up", "down")}
    frozen = {name: tensor.clone() for name, tensor in model.named_buffers()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    inputs, target = torch.randn(8, 4, 3, 3), torch.randn(8, 5)
    losses = []
    for _ in range(60):
        loss = (model(inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(frozen[name], tensor) for name, tensor in model.named_buffers())


def test_what_is_stored_is_merged():
    _, model = adapted()
    nn.init.normal_(model[0].up)
    stored = stored_weights(model)
    for name in ("0", "3"):
        assert torch.equal(stored[name].dense(), model.get_submodule(name).quantized_weight())
        assert stored[name].extra_tensors().keys() == {"scale", "zero"}
