"""Packed bits through torch's and diffusers' generic interfaces: refused in words, and nothing has changed."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, MotionAdapter, UNetMotionModel

from bitsfusion.errors import InputError

from .drawing import images, inputs, load


@pytest.fixture
def made(any_step_folder: Path) -> Any:
    return load(any_step_folder)


def dense_state(unet: Any) -> dict[str, torch.Tensor]:
    return copy.deepcopy(unet).dequantize().state_dict()


def averaged(unet: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.float().mul(0.5).to(tensor.dtype) for name, tensor in unet.state_dict().items()}


def as_floats(unet: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in unet.state_dict().items()}


@pytest.mark.parametrize(
    ("state_of", "says"),
    [(dense_state, "got a dense weight"), (averaged, "got other bits"), (as_floats, r"got other bits .*float32")],
)
def test_other_states(made: Any, state_of: Callable[[Any], dict[str, torch.Tensor]], says: str) -> None:
    before, state = images(made), state_of(made.unet)
    for strict in (True, False):
        with pytest.raises(InputError, match=f"{says}.*dequantize"):
            made.unet.load_state_dict(state, strict=strict)
    part = {name.removeprefix("mid_block."): tensor for name, tensor in state.items() if name.startswith("mid_block.")}
    with pytest.raises(InputError, match=says):
        made.unet.mid_block.load_state_dict(part)
    with pytest.raises(InputError, match=says):
        torch.nn.ModuleDict({"unet": made.unet}).load_state_dict({f"unet.{name}": part for name, part in state.items()})
    assert np.array_equal(images(made), before)


def test_its_own_state_and_copies(made: Any) -> None:
    before = images(made)
    made.unet.load_state_dict(made.unet.state_dict())
    for unet in (copy.deepcopy(made.unet), pickle.loads(pickle.dumps(made.unet))):
        with pytest.raises(InputError, match="dense weight"):
            unet.load_state_dict(dense_state(made.unet))
        assert unet.load_lora_adapter.model() is unet
        made.unet = unet
        assert np.array_equal(images(made), before)


def test_the_state_answers_for_weights_and_is_an_ordinary_one(made: Any, tmp_path: Path) -> None:
    state = made.unet.state_dict()
    assert torch.equal(state["conv_in.weight"], made.unet.conv_in.weight) and "conv_in.weight" not in state
    for missing in ("conv_in.nothing", "nothing.weight"):
        with pytest.raises(KeyError):
            state[missing]
    torch.save(state, tmp_path / "state")
    again = torch.load(tmp_path / "state", weights_only=True)
    assert again.keys() == state.keys() and type(again) is OrderedDict
    made.unet.load_state_dict(again)
    assert type(made.unet.dequantize().state_dict()) is OrderedDict


def motion_model(unet: Any) -> Any:
    widths = unet.config.block_out_channels
    adapter = MotionAdapter(block_out_channels=widths, motion_layers_per_block=1, motion_num_attention_heads=2)
    return UNetMotionModel.from_unet2d(unet, adapter)


@pytest.mark.parametrize("build", [ControlNetModel.from_unet, motion_model])
def test_models_made_from_a_unet(made: Any, folder: Path, build: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError, match=r"a part of a packed model .*dequantize.*--cover any"):
        build(made.unet)
    assert torch.equal(build(made.unet.dequantize()).conv_in.weight, made.unet.conv_in.weight)
    cached = load(folder).unet
    for _ in ("packed", "dense"):
        with pytest.raises(InputError, match="--cover any"):
            build(cached)
        if cached.hf_quantizer.dequantized is False:
            cached.dequantize()


def test_dense_weights_for_cached_time_layers(folder: Path, pipeline: Any) -> None:
    unet = load(folder).unet.dequantize()
    weight = unet.conv_in.weight.clone()
    with pytest.raises(InputError, match="--cover any"):
        unet.load_state_dict(pipeline.unet.state_dict())
    assert torch.equal(unet.conv_in.weight, weight)
    unet.load_state_dict(unet.state_dict())


def test_training_as_a_whole(made: Any) -> None:
    before, unet = images(made), made.unet
    for prepare in (unet.train, lambda: unet.requires_grad_(True), lambda: unet.conv_in.bias.requires_grad_(True)):
        unet.eval().requires_grad_(False)
        prepare()
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1.0)
        with pytest.raises(InputError, match=r"add an adapter and train that, or call dequantize\(\)"):
            unet(*inputs(unet)).sample.square().mean().backward()
        optimizer.step()
    unet.eval().requires_grad_(False)
    assert np.array_equal(images(made), before)


def test_gradients_to_what_goes_in(made: Any) -> None:
    """Textual inversion: the model in training mode, gradients to the text states alone."""
    sample, step, states = inputs(made.unet)
    states.requires_grad_(True)
    made.unet.train()
    made.unet(sample, step, encoder_hidden_states=states).sample.square().mean().backward()
    assert states.grad is not None and states.grad.abs().max() > 0


def test_fused_projections(made: Any) -> None:
    before, size = images(made), sum(tensor.nbytes for tensor in made.unet.state_dict().values())
    with pytest.raises(InputError, match=r"^fuse_qkv_projections: got a packed model.*dequantize"):
        made.fuse_qkv_projections(vae=False)
    assert sum(tensor.nbytes for tensor in made.unet.state_dict().values()) == size
    assert np.array_equal(images(made), before)


def test_the_dense_model_is_an_ordinary_one(made: Any, tmp_path: Path) -> None:
    before, fresh = images(made), type(made.unet).from_config(dict(made.unet.config))
    unet = made.unet.dequantize()
    assert "quantization_config" not in unet.config and not hasattr(unet, "hf_quantizer")
    assert not [hook for part in unet.modules() for hook in part._state_dict_pre_hooks.values()]
    assert all(parameter.requires_grad for parameter in unet.parameters())
    assert vars(unet).keys() <= vars(fresh).keys() | {"_internal_dict", "name_or_path"}
    unet.mid_block.load_state_dict(unet.mid_block.state_dict())
    assert np.array_equal(images(made), before)
    unet.train()
    unet(*inputs(unet)).sample.square().mean().backward()
    unet.save_pretrained(tmp_path / "unet")
    again = type(unet).from_pretrained(tmp_path / "unet")
    unet.load_state_dict(again.state_dict())
    unet.load_state_dict(fresh.state_dict())
    unet.fuse_qkv_projections()


def test_a_text_encoder(whole: Path) -> None:
    text = load(whole).text_encoder
    tokens = torch.tensor([[0, 5, 6, 1, 1, 1, 1, 1]])
    before = text(tokens).last_hidden_state
    with pytest.raises(InputError, match="dense weight"):
        text.load_state_dict(copy.deepcopy(text).dequantize().state_dict())
    text.train()
    with pytest.raises(InputError, match="add an adapter"):
        text(tokens)
    dense = text.eval().dequantize()
    assert torch.equal(dense(tokens).last_hidden_state, before)
    assert getattr(dense.config, "quantization_config", None) is None
    dense.load_state_dict(dense.state_dict())
