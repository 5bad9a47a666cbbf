"""Adapters on packed layers: loaded, combined, trained; never fused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import save_file

from bitsfusion.errors import InputError

from .drawing import images, inputs, load

peft = pytest.importorskip("peft")

TARGETS = {
    "one": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in"],
    "two": ["to_q", "conv2"],
    "time": ["to_q", "time_emb_proj"],
    "embedding": ["to_q", "linear_1"],
}


@pytest.fixture(scope="module")
def loras(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as `save_lora_weights` writes them, by the keys of TARGETS."""
    path = tmp_path_factory.mktemp("loras")
    for seed, (name, targets) in enumerate(TARGETS.items()):
        unet = copy.deepcopy(pipeline.unet)
        unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=targets))
        torch.manual_seed(seed)
        for parameter_name, parameter in unet.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.05)
        state = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(unet))
        StableDiffusionPipeline.save_lora_weights(path / name, unet_lora_layers=state)
    return path


def dense(folder: Path) -> StableDiffusionPipeline:
    made: StableDiffusionPipeline = load(folder)
    made.unet.dequantize()
    return made


def test_as_on_the_dequantized_model(folder: Path, loras: Path) -> None:
    pair = (load(folder), dense(folder))
    plain = images(pair[0])
    for made in pair:
        made.load_lora_weights(loras / "one", adapter_name="one")
    one = [images(made) for made in pair]
    assert np.array_equal(*one) and np.abs(one[0] - plain).max() > 1e-3
    for made in pair:
        made.load_lora_weights(loras / "two", adapter_name="two")
        made.set_adapters(["one", "two"], [0.5, 1.5])
    both = [images(made) for made in pair]
    assert np.array_equal(*both) and np.abs(both[0] - one[0]).max() > 1e-3
    for made in pair:
        made.delete_adapters("two")
        made.set_adapters(["one"])
    assert np.array_equal(images(pair[0]), one[0])
    pair[0].disable_lora()
    assert np.array_equal(images(pair[0]), plain)
    pair[0].unload_lora_weights()
    assert np.array_equal(images(pair[0]), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision(folder: Path, loras: Path, dtype: torch.dtype) -> None:
    exact, half = load(folder), load(folder, dtype=dtype)
    for made in (exact, half):
        made.load_lora_weights(loras / "one")
    assert {p.dtype for name, p in half.unet.named_parameters() if "lora_" in name} == {dtype}
    assert np.abs(images(half) - images(exact)).mean() < 0.05


@pytest.mark.parametrize("safe", [False, True])
def test_fusing_is_refused_and_nothing_has_changed(folder: Path, loras: Path, safe: bool) -> None:
    made = load(folder)
    made.load_lora_weights(loras / "one")
    expected = images(made)
    with pytest.raises(InputError, match="an adapter cannot be fused into packed bits"):
        made.fuse_lora(lora_scale=0.5, safe_fusing=safe)
    made.unfuse_lora()
    assert np.array_equal(images(made), expected)


@pytest.mark.parametrize("safe", [False, True])
def test_merging_by_peft_itself_is_refused(folder: Path, safe: bool) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    model = peft.get_peft_model(unet, peft.LoraConfig(r=4, target_modules=["to_q", "conv1"]))
    with pytest.raises(InputError, match="an adapter cannot be fused into packed bits"):
        model.merge_and_unload(safe_merge=safe)


def test_fusing_after_dequantizing(folder: Path, loras: Path) -> None:
    made, fused = load(folder), dense(folder)
    for pipeline in (made, fused):
        pipeline.load_lora_weights(loras / "one")
    fused.fuse_lora()
    fused.unload_lora_weights()
    np.testing.assert_allclose(images(fused), images(made), atol=1e-5)


@pytest.mark.parametrize("name", ["time", "embedding"])
def test_time_layers_that_are_cached_cannot_be_adapted(
    folder: Path, any_step_folder: Path, loras: Path, name: str
) -> None:
    made = load(folder)
    made.load_lora_weights(loras / "two", adapter_name="two")
    before, state = images(made), made.unet.state_dict()
    with pytest.raises(InputError, match=r"time layer that cached rows stand for.*--cover any"):
        made.load_lora_weights(loras / name)
    with pytest.raises(InputError, match=r"time layer that cached rows stand for.*--cover any"):
        made.unet.add_adapter(peft.LoraConfig(r=4, target_modules=TARGETS[name]), adapter_name="late")
    assert np.array_equal(images(made), before) and made.unet.state_dict().keys() == state.keys()
    assert set(made.unet.peft_config) == {"two"}
    made.unload_lora_weights()
    assert np.array_equal(images(made), images(load(folder)))
    kept = load(any_step_folder)
    plain = images(kept)
    kept.load_lora_weights(loras / name)
    assert np.abs(images(kept) - plain).max() > 1e-4


UP = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def pair(layer: str, inputs: int = 64, outputs: int = 64, kind: str = "unet") -> dict[str, torch.Tensor]:
    name = f"{kind}.{layer}.lora"
    return {f"{name}_A.weight": torch.ones(2, inputs), f"{name}_B.weight": torch.ones(outputs, 2)}


DO_NOT_FIT: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "no layer": (
        pair("mid_block.nowhere.to_q"),
        "nowhere.to_q: got an adapter for a layer that the UNet2DConditionModel",
    ),
    "norm": (pair("conv_norm_out"), "conv_norm_out: got an adapter for a GroupNorm"),
    "block": (pair("mid_block"), "mid_block: got an adapter for a UNetMidBlock2DCrossAttn"),
    "shape": (pair(UP, inputs=37), r"to_q: got an adapter of shapes \[2, 37\] and \[64, 2\], wanted .* \[64, 64\]"),
    "half": (dict(list(pair(UP).items())[:1]), "to_q: got an adapter with lora_A and no lora_B"),
    "text": (pair("text_model.encoder.layers.9.mlp.fc1", kind="text_encoder"), "fc1: .* that the CLIPTextModel does"),
}


def test_adapters_that_do_not_fit_change_nothing(any_step_folder: Path, tmp_path: Path) -> None:
    """Also where the rest of it fits: neither UNet nor text encoder has taken any of it."""
    made, fits = load(any_step_folder), UP.replace("attn1", "attn2")
    before = images(made)
    for state, says in DO_NOT_FIT.values():
        with pytest.raises(InputError, match=says) as caught:
            made.load_lora_weights(pair(fits) | state)
        assert "\n" not in str(caught.value)
    state, says = DO_NOT_FIT["no layer"]
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match=says):
        made.unet.load_lora_adapter(tmp_path, prefix="unet")
    with pytest.raises(InputError, match="target_modules: got nowhere, wanted layers of the UNet2DConditionModel"):
        made.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["nowhere"]))
    for targets, kind in ((["to_q", "conv_norm_out"], "GroupNorm"), (r"mid_block.*", "UNetMidBlock2DCrossAttn")):
        with pytest.raises(InputError, match=f"target_modules: got the {kind} .*, wanted linear layers"):
            made.unet.add_adapter(peft.LoraConfig(r=2, target_modules=targets))
    assert not any("lora" in name for part in (made.unet, made.text_encoder) for name, _ in part.named_modules())
    assert np.array_equal(images(made), before)
    made.load_lora_weights(pair(fits))
    assert not np.array_equal(images(made), before)


def test_saving_with_adapters_is_refused(folder: Path, loras: Path, tmp_path: Path) -> None:
    made = load(folder)
    made.load_lora_weights(loras / "one")
    with pytest.raises(InputError, match="save_lora_weights, then unload_lora_weights"):
        made.unet.save_pretrained(tmp_path / "unet")
    made.unload_lora_weights()
    made.unet.save_pretrained(tmp_path / "unet")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_training_reaches_the_adapter_alone(folder: Path, tmp_path: Path, checkpointing: bool) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v", "conv1"]))
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items() if "lora_" not in name}
    trained = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    target = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(6):
        loss = (unet(*inputs(unet, batch=2)).sample - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items() if name in before)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(unet))
    )
    again = load(folder)
    again.load_lora_weights(tmp_path)
    torch.testing.assert_close(again.unet(*inputs(unet)).sample, unet.eval()(*inputs(unet)).sample)


def test_gradients_are_those_of_the_dense_model(folder: Path) -> None:
    gradients = []
    for unpacked in (False, True):
        unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
        if unpacked:
            unet.dequantize()
            unet.requires_grad_(False)
        torch.manual_seed(5)
        unet.add_adapter(peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "conv1"]))
        unet(*inputs(unet)).sample.square().mean().backward()
        gradients.append([p.grad for p in unet.parameters() if p.requires_grad])
    assert len(gradients[0]) > 10
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
