"""`save_pretrained`: what was packed goes to disk again, bit for bit, or nothing does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, UNet2DConditionModel

from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.verify import verify, verify_folder
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.pipelines.weight_files import preferred

from .drawing import inputs, load

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(params=["folder", "any_step_folder"], ids=["cached", "any step"])
def packed(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_model_and_pipeline_in_any_dtype(packed: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    loaded = load(packed, dtype=dtype)
    loaded.save_pretrained(tmp_path / "pipeline")
    loaded.unet.save_pretrained(tmp_path / "unet")
    for saved in (tmp_path / "pipeline" / "unet", tmp_path / "unet"):
        verify_folder(saved)
        assert (saved / WEIGHTS).read_bytes() == (packed / "unet" / WEIGHTS).read_bytes()
    again = UNet2DConditionModel.from_pretrained(tmp_path / "unet", dtype=dtype)
    assert torch.equal(again(*inputs(again)).sample, loaded.unet(*inputs(loaded.unet)).sample)


@pytest.mark.parametrize("part", ["pipeline", "unet", "text_encoder"])
def test_saving_over_a_packed_pipeline_takes_its_hashes_away(whole: Path, tmp_path: Path, part: str) -> None:
    """Configs are then as diffusers writes them, not as the sums say."""
    shutil.copytree(whole, tmp_path / "packed")
    loaded = load(whole)
    assert verify(tmp_path / "packed").files
    if part == "pipeline":
        loaded.save_pretrained(tmp_path / "packed", max_shard_size="10GB")
    else:
        getattr(loaded, part).save_pretrained(tmp_path / "packed" / part)
    found = verify(tmp_path / "packed")
    assert not found.faults and found.files is None


def test_hashes_of_other_files_stay(folder: Path, tmp_path: Path) -> None:
    sums = f"{'0' * 64}  other/config.json\n"
    (tmp_path / "SHA256SUMS").write_text(sums)
    load(folder).unet.save_pretrained(tmp_path / "unet")
    assert (tmp_path / "SHA256SUMS").read_text() == sums


def test_a_variant_of_any_name(folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path / "saved", variant="two-bit", max_shard_size="100KB")
    verify_folder(tmp_path / "saved")
    one, other = load_pipeline(str(tmp_path / "saved")).unet, load(folder).unet
    assert torch.equal(one(*inputs(one)).sample, other(*inputs(other)).sample)


@pytest.mark.parametrize(
    ("variants", "chosen"),
    [
        (("two-bit",), "two-bit"),
        (("two-bit", "fp16"), "fp16"),
        (("two-bit", "int8"), "none"),
        (("non_ema",), "none"),
        (("non_ema", "two-bit"), "two-bit"),
        (("non_ema", "fp16", None), None),
    ],
    ids=str,
)
def test_which_variant_is_chosen(tmp_path: Path, variants: tuple[str | None, ...], chosen: str | None) -> None:
    for variant in variants:
        (tmp_path / f"model.{variant}.safetensors".replace(".None", "")).touch()
        (tmp_path / f"model.{variant}-00001-of-00002.safetensors".replace(".None", "")).touch()
    choice = preferred(tmp_path)
    assert ("none" if choice is None else choice.variant) == chosen


def test_after_casts(folder: Path, tmp_path: Path) -> None:
    """`from_pipe` casts to float32 what was loaded in bfloat16: rounded values are no longer those of the file."""
    unet = StableDiffusionImg2ImgPipeline.from_pipe(load(folder, dtype=torch.bfloat16)).unet
    unet.save_pretrained(tmp_path / "unet")
    assert (tmp_path / "unet" / WEIGHTS).read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()


def test_shards(packed: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(packed / "unet", dtype=torch.bfloat16)
    unet.save_pretrained(tmp_path / "unet", max_shard_size="40KB")
    shards = sorted(path.name for path in (tmp_path / "unet").glob("*.safetensors"))
    assert len(shards) > 3 and WEIGHTS not in shards
    verify_folder(tmp_path / "unet")
    assert inspect_folder(tmp_path / "unet").true_bits == inspect_folder(packed).true_bits
    again = UNet2DConditionModel.from_pretrained(tmp_path / "unet", dtype=torch.bfloat16)
    assert torch.equal(again(*inputs(again)).sample, unet(*inputs(unet)).sample)


@pytest.mark.parametrize("sizes", [("40KB", "10GB"), ("10GB", "40KB")], ids=["shards first", "shards second"])
def test_shards_and_a_single_file_in_one_folder_are_found(folder: Path, tmp_path: Path, sizes: tuple[str, str]) -> None:
    """diffusers leaves the index, or the file, of an earlier save."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    for size in sizes:
        unet.save_pretrained(tmp_path / "unet", max_shard_size=size)
    with pytest.raises(ArtifactError, match="wanted one of both: remove the older one"):
        verify_folder(tmp_path / "unet")


def test_a_lost_shard_is_found_on_load(folder: Path, tmp_path: Path) -> None:
    import json

    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(tmp_path / "unet", max_shard_size="40KB")
    index = tmp_path / "unet" / f"{WEIGHTS}.index.json"
    content = json.loads(index.read_text())
    lost = content["weight_map"]["conv_in.packed"]
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file != lost}
    index.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"got no tensor \S+ in the file"):
        UNet2DConditionModel.from_pretrained(tmp_path / "unet")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["conv_in.bias", "mid_block.resnets.0.norm1.weight", "conv_in.packed"])
def test_changed_tensors_are_not_passed_off_as_packed_ones(
    folder: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype)
    with torch.no_grad():
        unet.state_dict()[name][-1] += 1
    with pytest.raises(InputError, match="got other values than were loaded"):
        unet.save_pretrained(tmp_path / "unet")
    assert not (tmp_path / "unet" / WEIGHTS).exists()


def test_no_pickle(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got safe_serialization=False, wanted True"):
        UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(tmp_path, safe_serialization=False)


def test_loading_and_saving_leave_the_source_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "unet", tmp_path / "unet")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet", dtype=torch.float16)
    unet.save_pretrained(tmp_path / "unet")
    verify_folder(tmp_path / "unet")
