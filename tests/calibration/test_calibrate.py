"""Blocks found, inputs played back, and a whole model calibrated."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.calibration.blocks import find_blocks
from bitsfusion.calibration.calibrate import calibrate
from bitsfusion.calibration.playback import Inputs, Outputs, Playback, Side
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import Call
from bitsfusion.calibration.trees import load_tree, map_tensors, save_tree, tensors_of
from bitsfusion.errors import InputError
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.nn.rounded import put_rounded

from ..tiny.unet import build_unet, sdxl

DEVICE = torch.device("cpu")


def calls_of(unet, count: int = 2, batch: int = 4) -> list[Call]:
    torch.manual_seed(5)
    width = unet.config.cross_attention_dim
    kwargs = {}
    if unet.config.addition_embed_type:
        kwargs["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, 16), "time_ids": torch.ones(batch, 6)}
    return [
        Call(
            (torch.randn(batch, 4, 4, 4), torch.tensor(900 - 400 * index)),
            {"encoder_hidden_states": torch.randn(batch, 7, width), "return_dict": False, **kwargs},
        )
        for index in range(count)
    ]


UNETS = {
    "small": {},
    "two of each": {"layers_per_block": 2},
    "sdxl": sdxl(16),
}


@pytest.fixture(params=UNETS, ids=str)
def unet(request):
    return build_unet(**UNETS[request.param])


def test_every_layer_is_in_one_block_in_the_order_of_the_forward(unet):
    layers = list(layers_to_assign(unet))
    blocks = find_blocks(unet, calls_of(unet)[0], layers)
    found = [name for block in blocks for name in block.layers]
    assert sorted(found) == sorted(layers)
    ran: list[str] = []
    with ExitStack() as stack, torch.no_grad():
        for name in layers:
            hook = unet.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
            stack.callback(hook.remove)
        call = calls_of(unet)[0]
        unet(*call.args, **call.kwargs)
    assert found == ran
    assert all(
        source in [other.name for other in blocks[:place]] for place, b in enumerate(blocks) for source in b.sources
    )
    assert any(len(block.groups) > 3 for block in blocks)
    for group in (group for block in blocks for group in block.groups if len(group) > 1):
        assert all(part.split(".")[-1] in ("to_q", "to_k", "to_v") for part in group)


@torch.no_grad()
@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_played_back_inputs_are_those_of_a_whole_pass(unet, kept, tmp_path):
    calls = calls_of(unet, 1)
    blocks = find_blocks(unet, calls[0], list(layers_to_assign(unet)))
    seen: dict[str, tuple] = {}
    with ExitStack() as stack:
        for block in blocks:

            def catch(module, args, kwargs, name=block.name):
                seen[name] = map_tensors((args, kwargs), torch.clone)

            stack.callback(unet.get_submodule(block.name).register_forward_pre_hook(catch, with_kwargs=True).remove)
        unet(*calls[0].args, **calls[0].kwargs)
    playback = Playback(unet, blocks, calls, Outputs(DEVICE, tmp_path, 1 << 40 if kept == "memory" else 0))
    for index, block in enumerate(blocks):
        inputs = playback.inputs(index, Side.STUDENT, 0)
        for got, wanted in zip(tensors_of((inputs.args, inputs.kwargs)), tensors_of(seen[block.name]), strict=True):
            assert torch.equal(got, wanted), block.name
        playback.keep(index, Side.STUDENT, 0, inputs.run(unet.get_submodule(block.name)))
        playback.forget(index)
    assert "forward" not in unet.get_submodule(blocks[0].name).__dict__


@torch.no_grad()
def test_a_calibrated_model_is_nearer_to_the_original_than_a_rounded_one(unet):
    bits = dict.fromkeys(layers_to_assign(unet), 2)
    *calls, other = calls_of(unet, 3, 24)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    made = calibrate(unet, bits, calls)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert list(made.layers) == list(bits) and not made.notes
    plain, calibrated = copy.deepcopy(unet), copy.deepcopy(unet)
    fake_quantize_model(plain, bits)
    put_rounded(calibrated, made.layers)
    errors = [_error(unet, model, other) for model in (plain, calibrated)]
    assert errors[1] < 0.6 * errors[0]


def _error(one: nn.Module, other: nn.Module, call: Call) -> float:
    results = [model(*call.args, **call.kwargs)[0] for model in (one, other)]
    return float((results[0] - results[1]).square().mean())


class _Killed(Exception):
    pass


@torch.no_grad()
def test_killed_work_goes_on_and_ends_with_the_same_result(tmp_path):
    unet = build_unet()
    bits, calls = dict.fromkeys(layers_to_assign(unet), 2), calls_of(unet, 2, 3)
    whole = calibrate(unet, bits, calls)

    def killed(done: int, total: int) -> None:
        if done > total // 2:
            raise _Killed

    with pytest.raises(_Killed):
        calibrate(unet, bits, calls, None, killed, tmp_path)
    finished = sorted(path.name for path in tmp_path.glob("block-*"))
    assert finished
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in finished}
    seen: list[int] = []
    again = calibrate(unet, bits, calls, None, lambda done, total: seen.append(done), tmp_path)
    assert seen[-1] == len(bits)
    for name, layer in whole.layers.items():
        other = again.layers[name]
        assert torch.equal(layer.codes, other.codes) and torch.equal(layer.scale, other.scale), name
        assert layer.error == other.error and (layer.bias is None or torch.equal(layer.bias, other.bias)), name
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in finished} == times


@torch.no_grad()
def test_outputs_that_are_too_much_for_the_memory_go_to_the_folder(tmp_path):
    outputs = Outputs(DEVICE, tmp_path, memory_bytes=100)
    small, large = torch.arange(10.0), torch.arange(50.0)
    for call, value in enumerate((small, large, small)):
        outputs.put("block", Side.STUDENT, call, (value, None))
    assert len(list(tmp_path.iterdir())) == 1
    for call, value in enumerate((small, large, small)):
        assert torch.equal(outputs.get("block", Side.STUDENT, call)[0], value)
    outputs.bury("block", Side.STUDENT, 1)
    assert not list(tmp_path.iterdir())
    assert outputs.get("block", Side.STUDENT, 1)[0].shape == large.shape
    assert torch.isnan(outputs.get("block", Side.STUDENT, 1)[0]).all()


class _WithSpare(nn.Module):
    """A layer that never runs, one that runs twice, and one that does not exist for `bits`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.spare = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.norm(self.twice(torch.relu(self.first(x)))))


def test_a_layer_that_never_runs_is_rounded_by_its_weights_and_named():
    torch.manual_seed(0)
    model = _WithSpare()
    made = calibrate(model, {"first": 2, "twice": 2, "spare": 2}, [Call((torch.randn(50, 8),), {})])
    assert made.layers["spare"].error is None
    assert made.layers["first"].error is not None and made.layers["twice"].error is not None
    assert len(made.notes) == 1 and "spare" in made.notes[0] and "weights alone" in made.notes[0]
    assert torch.equal(made.layers["spare"].bias, model.spare.bias.detach())


def test_activations_that_are_not_finite_name_the_layer(unet):
    bits = dict.fromkeys(layers_to_assign(unet), 2)
    call = calls_of(unet, 1)[0]
    call.kwargs["encoder_hidden_states"][1, 2, 3] = float("nan")
    with pytest.raises(InputError, match=r"attn2.to_k: got NaN or infinite activations"):
        calibrate(unet, bits, [call])


@pytest.mark.parametrize(("bits", "message"), [({"norm": 2}, "norm: got LayerNorm"), ({"first": 9}, "first: got 9")])
def test_wrong_bits(bits, message):
    with pytest.raises(InputError, match=message):
        calibrate(_WithSpare(), bits, [Call((torch.randn(5, 8),), {})])


def test_no_more_rows_than_asked_for_are_looked_at():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4))
    calls = [Call((torch.randn(100, 4),), {}) for _ in range(4)]
    few = calibrate(model, {"0": 1}, calls, CalibrationSettings(rows=8))
    assert torch.isfinite(few.layers["0"].weight).all()


@torch.no_grad()
def test_inputs_run_on_copies():
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.add_(1)

    given = Inputs((torch.zeros(3),), {})
    given.run(Writes())
    assert torch.equal(given.args[0], torch.zeros(3))


def test_trees_on_disk(tmp_path):
    tree = ((torch.arange(3), None, True), {"a": [torch.ones(2, 2), 1.5], "b": "text", "c": torch.float16})
    save_tree(tmp_path / "tree.safetensors", tree)
    again = load_tree(tmp_path / "tree.safetensors", DEVICE)
    assert [t.tolist() for t in tensors_of(again)] == [t.tolist() for t in tensors_of(tree)]
    assert again[0][1:] == (None, True) and again[1]["a"][1] == 1.5 and again[1]["b"] == "text"
    assert again[1]["c"] is torch.float16
    with pytest.raises(InputError, match="got an argument of type object"):
        save_tree(tmp_path / "other", {"a": object()})
