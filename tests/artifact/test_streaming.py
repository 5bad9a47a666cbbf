"""From a pipeline's files to a packed folder, a layer at a time."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from bitsfusion.architectures.registry import UNET
from bitsfusion.artifact.parts import parts_of_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.artifact.writer import write_model, write_parts
from bitsfusion.diffusion.samplers import Coverage
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_folder
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.copying import copy_components
from bitsfusion.pipelines.folder import read_folder
from bitsfusion.pipelines.model_folder import left_out, open_model

from ..tiny.unet import build_unet
from .conftest import mixed_bits

COVERAGE = Coverage((981, 1))
WEIGHTS = "diffusion_pytorch_model.safetensors"
LAYER = "mid_block.attentions.0.proj_in"

Edit = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture(scope="module")
def dense(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline in float16, as published ones are; tests that damage it copy it first."""
    folder = tmp_path_factory.mktemp("dense") / "pipeline"
    copy.deepcopy(pipeline).to(torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(dense: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """A copy of the UNet's folder, its tensors edited."""

    def edited(edit: Edit) -> Path:
        folder = tmp_path / "unet"
        shutil.copytree(dense / "unet", folder)
        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS)
        return folder

    return edited


def streamed(dense: Path, unet: Path, out: Path, coverage: Coverage | None, method: ScaleInit) -> None:
    folder = open_model(unet, UNET)
    write_parts(
        {"unet": parts_of_folder(folder, mixed_bits(folder.skeleton), method, coverage)}, read_folder(dense), out
    )


def save_variant(unet: UNet2DConditionModel, folder: Path, kind: str) -> None:
    options = {
        "single": {},
        "sharded": {"max_shard_size": "100KB"},
        "fp16": {"variant": "fp16"},
        "sharded fp16": {"variant": "fp16", "max_shard_size": "100KB"},
    }
    unet.save_pretrained(folder, **options[kind])


@pytest.mark.parametrize("kind", ["single", "sharded", "fp16", "sharded fp16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_same_bytes_as_from_memory(
    pipeline: StableDiffusionPipeline, dense: Path, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    unet = copy.deepcopy(pipeline.unet).to(dtype)
    save_variant(unet, tmp_path / "unet", kind)
    streamed(dense, tmp_path / "unet", tmp_path / "streamed", COVERAGE, ScaleInit.EXACT)
    whole = unet.float()
    fake_quantize_model(whole, mixed_bits(whole), ScaleInit.EXACT)
    write_model(whole, tmp_path / "whole", COVERAGE)
    assert sha256_folder(tmp_path / "streamed" / "unet") == sha256_folder(tmp_path / "whole")


def test_the_same_bytes_with_time_layers(pipeline: StableDiffusionPipeline, dense: Path, tmp_path: Path) -> None:
    pipeline.unet.save_pretrained(tmp_path / "unet")
    streamed(dense, tmp_path / "unet", tmp_path / "streamed", None, ScaleInit.ALTERNATING)
    whole = copy.deepcopy(pipeline.unet)
    fake_quantize_model(whole, mixed_bits(whole), ScaleInit.ALTERNATING)
    write_model(whole, tmp_path / "whole", None)
    assert sha256_folder(tmp_path / "streamed" / "unet") == sha256_folder(tmp_path / "whole")


def test_old_names_of_attention(dense: Path, tmp_path: Path) -> None:
    """UNets with AttnDownBlock2D have `query` where newer ones have `to_q`; diffusers loads both."""
    unet = build_unet(
        block_out_channels=(16, 16),
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        attention_head_dim=8,
    )
    unet.save_pretrained(tmp_path / "unet")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / "unet" / WEIGHTS)
    for name in [name for name in tensors if ".attentions." in name and "mid_block" not in name]:
        for new, before in old.items():
            if f".{new}." in name:
                tensors[name.replace(f".{new}.", f".{before}.")] = tensors.pop(name)
    assert any(".query.weight" in name for name in tensors)
    save_file(tensors, tmp_path / "unet" / WEIGHTS)
    streamed(dense, tmp_path / "unet", tmp_path / "streamed", COVERAGE, ScaleInit.EXACT)
    fake_quantize_model(unet, mixed_bits(unet), ScaleInit.EXACT)
    write_model(unet, tmp_path / "whole", COVERAGE)
    assert sha256_folder(tmp_path / "streamed" / "unet") == sha256_folder(tmp_path / "whole")


def test_components_are_copied_and_variants_get_plain_names(
    pipeline: StableDiffusionPipeline, dense: Path, tmp_path: Path
) -> None:
    half = copy.deepcopy(pipeline).to(torch.float16)
    half.save_pretrained(tmp_path / "fp16", variant="fp16")
    half.vae.save_pretrained(tmp_path / "fp16" / "vae", variant="fp16", max_shard_size="20KB")
    (tmp_path / "fp16" / "vae" / f"{WEIGHTS.replace('.', '.fp16.')}").unlink()
    (tmp_path / "fp16" / "text_encoder" / "pytorch_model.fp16.bin").write_bytes(b"the same in a pickle")
    streamed(tmp_path / "fp16", tmp_path / "fp16" / "unet", tmp_path / "out", COVERAGE, ScaleInit.EXACT)
    verify_folder(tmp_path / "out")
    names = sorted(path.name for path in tmp_path.glob("out/*/*"))
    assert "diffusion_pytorch_model-00001-of-00005.safetensors" in names
    assert not any("fp16" in name or name.endswith(".bin") for name in names)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    for name in ("vae", "text_encoder"):
        wanted = getattr(half, name).state_dict()
        got = getattr(loaded, name).state_dict()
        assert all(torch.equal(got[key].half(), wanted[key]) for key in wanted)
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_bytes() == (
        tmp_path / "fp16" / "tokenizer" / "tokenizer.json"
    ).read_bytes()


def test_missing_tensor(damaged: Callable[[Edit], Path]) -> None:
    folder = damaged(lambda tensors: tensors.pop(f"{LAYER}.weight"))
    with pytest.raises(InputError, match=rf"^{LAYER}\.weight: got no such tensor"):
        open_model(folder, UNET)


def test_other_shape(damaged: Callable[[Edit], Path]) -> None:
    folder = damaged(lambda tensors: tensors.update({f"{LAYER}.weight": torch.zeros(64, 32, 1, 1)}))
    with pytest.raises(InputError, match=rf"^{LAYER}\.weight: got shape \[64, 32, 1, 1\] .* wanted \[64, 64, 1, 1\]"):
        open_model(folder, UNET)


def test_whole_numbers(damaged: Callable[[Edit], Path]) -> None:
    folder = damaged(lambda tensors: tensors.update({f"{LAYER}.weight": torch.zeros(64, 64, 1, 1, dtype=torch.int8)}))
    with pytest.raises(InputError, match=rf"^{LAYER}\.weight: got dtype I8"):
        open_model(folder, UNET)


@pytest.mark.parametrize(
    "name", [f"{LAYER}.weight", f"{LAYER}.bias", "conv_norm_out.weight", "time_embedding.linear_1.bias"]
)
def test_values_that_are_not_finite(damaged: Callable[[Edit], Path], dense: Path, tmp_path: Path, name: str) -> None:
    folder = damaged(lambda tensors: tensors[name].view(-1)[3:4].fill_(float("nan")))
    with pytest.raises(InputError, match=rf"^{name.removesuffix('.weight')}.*NaN or infinite"):
        streamed(dense, folder, tmp_path / "out", COVERAGE, ScaleInit.EXACT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 5, 2000, -1])
def test_cut_files(dense: Path, tmp_path: Path, keep: int) -> None:
    shutil.copytree(dense / "unet", tmp_path / "unet")
    data = (tmp_path / "unet" / WEIGHTS).read_bytes()
    (tmp_path / "unet" / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(InputError, match="wanted a whole safetensors file") as caught:
        open_model(tmp_path / "unet", UNET)
    assert "\n" not in str(caught.value)


def test_tensors_that_the_model_does_not_have_are_reported(damaged: Callable[[Edit], Path]) -> None:
    folder = damaged(lambda tensors: tensors.update({"ghost.weight": torch.zeros(1)}))
    assert left_out(open_model(folder, UNET)) == "1 tensors that the UNet does not have were left out: ghost.weight"


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_other_models(dense: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got _class_name 'AutoencoderKL', wanted 'UNet2DConditionModel'"):
        open_model(dense / "vae", UNET)
    with pytest.raises(InputError, match="quantized by 'bitsfusion', wanted a full-precision one"):
        open_model(folder / "unet", UNET)
    shutil.copytree(dense / "unet", tmp_path / "unet")
    edit_json(tmp_path / "unet" / "config.json", down_block_types=["NoSuchBlock", "DownBlock2D"])
    with pytest.raises(InputError, match=r"UNet2DConditionModel refuses it: .*NoSuchBlock"):
        open_model(tmp_path / "unet", UNET)


def test_weights_in_other_formats(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense / "unet", tmp_path / "unet")
    (tmp_path / "unet" / WEIGHTS).rename(tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"only as diffusion_pytorch_model\.bin, wanted safetensors"):
        open_model(tmp_path / "unet", UNET)
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="got no weights"):
        open_model(tmp_path / "unet", UNET)


def test_a_shard_that_is_missing_or_elsewhere(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    save_variant(pipeline.unet, tmp_path, "sharded")
    index = next(tmp_path.glob("*.index.json"))
    shard = next(tmp_path.glob("*-00002-*"))
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"got no file {shard.name}"):
        open_model(tmp_path, UNET)
    edit_json(index, weight_map={"conv_in.weight": "../outside.safetensors"})
    with pytest.raises(InputError, match="wanted plain"):
        open_model(tmp_path, UNET)


def test_components_that_cannot_be_copied(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "vae")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="got no folder of component 'vae'"):
        copy_components(read_folder(tmp_path / "a"), tmp_path / "out")
    edit_json(tmp_path / "a" / "model_index.json", vae=None, **{"../vae": ["diffusers", "AutoencoderKL"]})
    with pytest.raises(InputError, match=r"component '\.\./vae'"):
        copy_components(read_folder(tmp_path / "a"), tmp_path / "out")
    shutil.copytree(dense, tmp_path / "b")
    (tmp_path / "b" / "text_encoder" / "model.safetensors").rename(tmp_path / "b" / "text_encoder" / "model.bin")
    with pytest.raises(InputError, match=r"text_encoder: got weights only as model\.bin"):
        copy_components(read_folder(tmp_path / "b"), tmp_path / "out")
