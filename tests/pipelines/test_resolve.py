"""What a user may name: each form of a model leads to the same weights, or to one line that says how to go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from bitsfusion.artifact.verify import verify_folder
from bitsfusion.embedded import PIPELINE_FOLDER
from bitsfusion.errors import InputError
from bitsfusion.pipelines.folder import Form, read_folder
from bitsfusion.pipelines.load import load_pipeline, pipeline_folder
from bitsfusion.pipelines.resolve import resolve
from bitsfusion.runs.packing import init_pipeline

from ..tiny.kinds import build_sd, build_sdxl
from ..tiny.ldm import save_checkpoint

UNET_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "sd"
    build_sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bits_of_unet(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The packed weight file that every form must lead to."""
    out = tmp_path_factory.mktemp("plain") / "out"
    init_pipeline(str(source), out, recipe="uniform:3", samplers=None)
    return (out / "unet" / UNET_FILE).read_bytes()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_pipeline_is_read_as_its_index_says(source: Path) -> None:
    folder = read_folder(source)
    assert (folder.form, folder.class_name) == (Form.PIPELINE, "StableDiffusionPipeline")
    assert {part.name: part.class_name for part in folder.components} == {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "scheduler": "PNDMScheduler",
    }
    assert folder.denoiser.name == "unet" and folder.denoiser.variant is None
    assert set(folder.denoiser.hashes) == {"config.json", UNET_FILE}
    assert resolve("embedded").path == PIPELINE_FOLDER


def cached(source: Path, cache: Path) -> str:
    """The folder as the hub's cache keeps it: links to blobs."""
    home = cache / "models--someone--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("c0ffee")
    for number, file in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        link = home / "snapshots" / "c0ffee" / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        (home / "blobs").mkdir(exist_ok=True)
        shutil.copyfile(file, home / "blobs" / str(number))
        link.symlink_to(home / "blobs" / str(number))
    return "someone/model"


def shards(source: Path, target: Path) -> None:
    build_sd().save_pretrained(target, max_shard_size="60KB")
    assert list((target / "unet").glob("*.index.json"))


def component(source: Path, target: Path) -> None:
    shutil.copytree(source / "unet", target)


def checkpoint(source: Path, target: Path) -> None:
    """What diffusers' own training scripts save on their way."""
    shutil.copytree(source / "unet", target / "unet")
    shutil.copytree(source / "unet", target / "unet_ema")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (target / name).write_bytes(b"state")


def test_an_index_that_contradicts_its_shards(source: Path, tmp_path: Path) -> None:
    """A tensor in another shard than the index says, and one in none: errors before anything is written."""
    shards(source, tmp_path / "x")
    index = tmp_path / "x" / "vae" / f"{UNET_FILE}.index.json"

    def moved(values: dict[str, Any]) -> None:
        files = sorted(set(values["weight_map"].values()))
        after = dict(zip(files, [*files[1:], files[0]], strict=True))
        values["weight_map"] = {name: after[file] for name, file in values["weight_map"].items()}

    edit_json(index, moved)
    with pytest.raises(InputError, match=r"^vae: .*: got it only in the (file|index) .*wanted both to agree"):
        init_pipeline(str(tmp_path / "x"), tmp_path / "again", recipe="uniform:3")
    edit_json(index, lambda values: values["weight_map"].update(ghost=values["weight_map"]["encoder.conv_in.weight"]))
    with pytest.raises(InputError, match=r"^vae: .*got ghost in the index and in no shard"):
        init_pipeline(str(tmp_path / "x"), tmp_path / "again", recipe="uniform:3")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("form", [shards, component, checkpoint])
def test_forms_of_a_folder(form: Any, source: Path, bits_of_unet: bytes, tmp_path: Path) -> None:
    form(source, tmp_path / "checkpoint-500")
    out, alone = tmp_path / "out", form is not shards
    init_pipeline(str(tmp_path / "checkpoint-500"), out, recipe="uniform:3", samplers=None)
    assert (out / ("" if alone else "unet") / UNET_FILE).read_bytes() == bits_of_unet
    verify_folder(out)
    if alone:
        with pytest.raises(InputError, match="wanted a whole diffusers pipeline folder"):
            load_pipeline(str(tmp_path / "checkpoint-500"))
        whole = tmp_path / "whole"
        init_pipeline(str(tmp_path / "checkpoint-500"), whole, recipe="uniform:3", samplers=None, config=str(source))
        assert (whole / "unet" / UNET_FILE).read_bytes() == bits_of_unet
        verify_folder(whole)
        load_pipeline(str(whole))


def test_a_hub_id_from_the_cache(
    source: Path, bits_of_unet: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    name = cached(source, tmp_path / "hub")
    init_pipeline(name, tmp_path / "out", recipe="uniform:3", samplers=None)
    assert (tmp_path / "out" / "unet" / UNET_FILE).read_bytes() == bits_of_unet
    with pytest.raises(InputError, match=r"^nobody/model: no such folder, and the hub did not give it"):
        resolve("nobody/model")
    blob = (tmp_path / "hub" / "models--someone--model" / "snapshots" / "c0ffee" / "vae" / UNET_FILE).resolve()
    blob.unlink()
    with pytest.raises(InputError, match=r"^vae: .*a link that leads nowhere.*download it again"):
        init_pipeline(name, tmp_path / "again", recipe="uniform:3")


def test_variants_of_each_component(source: Path, tmp_path: Path) -> None:
    """A UNet in fp16 alone, a VAE in bf16 alone, a plain text encoder beside its fp16: all plain once packed."""
    shutil.copytree(source, tmp_path / "mixed")
    pipeline = build_sd()
    for name, dtype, variant in (("unet", torch.float16, "fp16"), ("vae", torch.bfloat16, "bf16")):
        (tmp_path / "mixed" / name / UNET_FILE).unlink()
        getattr(pipeline, name).to(dtype).save_pretrained(tmp_path / "mixed" / name, variant=variant)
    pipeline.text_encoder.to(torch.float16).save_pretrained(tmp_path / "mixed" / "text_encoder", variant="fp16")
    folder = read_folder(tmp_path / "mixed")
    assert {part.name: part.variant for part in folder.components if part.weights} == {
        "unet": "fp16",
        "vae": "bf16",
        "text_encoder": None,
    }
    loaded, plain = load_pipeline(str(tmp_path / "mixed")), load_pipeline(str(source))
    assert torch.equal(loaded.unet.conv_in.weight, plain.unet.conv_in.weight.half().float())
    weights = [pipe.text_encoder.get_input_embeddings().weight for pipe in (loaded, plain)]
    assert torch.equal(*weights)
    init_pipeline(str(tmp_path / "mixed"), tmp_path / "out", recipe="uniform:4")
    verify_folder(tmp_path / "out")
    load_pipeline(str(tmp_path / "out"))


@pytest.mark.parametrize("build", [build_sd, build_sdxl])
def test_a_single_file(build: Callable[[], Any], tmp_path: Path) -> None:
    """The same weights as from the folder whose configs it takes, and as many bits."""
    pipeline = build()
    pipeline.save_pretrained(tmp_path / "config")
    file = save_checkpoint(pipeline, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"give a pipeline folder of the same kind with --config FOLDER"):
        resolve(str(file))
    found = resolve(str(file), str(tmp_path / "config"))
    assert resolve(str(file), str(tmp_path / "config")).path == found.path, "converted twice"
    made = load_pipeline(found)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            theirs = getattr(pipeline, name).state_dict()
            ours = getattr(made, name).state_dict()
            assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    init_pipeline(str(file), tmp_path / "out", recipe="uniform:2", config=str(tmp_path / "config"))
    init_pipeline(str(tmp_path / "config"), tmp_path / "plain", recipe="uniform:2")
    ours, theirs = (tmp_path / name / "unet" / UNET_FILE for name in ("out", "plain"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_single_file_in_part_and_marked(source: Path, tmp_path: Path) -> None:
    """A UNet alone, as other programs keep it, with marks of velocity and zero terminal SNR; EMA copies beside it."""
    stored = load_file(save_checkpoint(build_sd(), tmp_path / "whole.safetensors"))
    unet = {name: value for name, value in stored.items() if name.startswith("model.diffusion_model.")}
    ema = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": 0 * value for name, value in unet.items()}
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({name: value.half() for name, value in (unet | ema | marks).items()}, tmp_path / "part.safetensors")
    made, plain = load_pipeline(resolve(str(tmp_path / "part.safetensors"), str(source))), load_pipeline(str(source))
    said = made.scheduler.config
    assert (said.prediction_type, said.rescale_betas_zero_snr, said.timestep_spacing) == (
        "v_prediction",
        True,
        "trailing",
    )
    for name in ("unet", "vae", "text_encoder"):
        pair = (getattr(pipe, name).state_dict() for pipe in (made, plain))
        assert all(torch.equal(one, other.half().float()) for one, other in zip(*map(dict.values, pair), strict=True))


def test_single_files_that_are_refused(source: Path, tmp_path: Path) -> None:
    def written(name: str, *tensors: str) -> str:
        save_file({tensor: torch.zeros(2, 2) for tensor in tensors}, tmp_path / name)
        return str(tmp_path / name)

    (tmp_path / "old.ckpt").write_bytes(b"PK")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused = {
        str(tmp_path / "old.ckpt"): r"may be a pickle, wanted safetensors: .*safe_serialization=True",
        str(tmp_path / "missing.CKPT"): "may be a pickle",
        str(tmp_path / "cut.safetensors"): r"wanted a whole \.safetensors checkpoint",
        str(tmp_path / "pointer.safetensors"): "got a git-lfs pointer",
        written("lora.safetensors", "lora_unet_x.lora_down.weight"): "got an adapter",
        written("flux.safetensors", "double_blocks.0.img_attn.qkv.weight"): r"wanted the original LDM or SDXL layout",
        str(source / "unet" / UNET_FILE): f"wanted the folder: {source / 'unet'}",
    }
    for name, says in refused.items():
        with pytest.raises(InputError, match=says) as caught:
            resolve(name, str(source))
        assert "\n" not in str(caught.value)


def test_folders_that_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "dream.safetensors").touch()
    for name in ("class", "part", "flux", "gone", "outside"):
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "class" / "mine.py").touch()
    edit_json(tmp_path / "class" / "model_index.json", lambda index: index.update(_class_name=["mine", "Mine"]))
    (tmp_path / "part" / "unet" / "my_unet.py").touch()
    edit_json(tmp_path / "part" / "model_index.json", lambda index: index.update(unet=["my_unet", "MyUNet"]))
    edit_json(tmp_path / "flux" / "model_index.json", lambda index: index.update(unet=["diffusers", "UNet3D"]))
    shutil.rmtree(tmp_path / "gone" / "vae")
    edit_json(tmp_path / "outside" / "model_index.json", lambda index: index.update({"../vae": ["diffusers", "X"]}))
    refused = {
        "missing": "no such folder, wanted a pipeline",
        "empty": r"got a folder without model_index\.json, wanted",
        "single": r"but with dream\.safetensors \(a single-file checkpoint is given by its own path\)",
        "class": r"a pipeline with code of its own \(mine\.Mine in model_index\.json\)",
        "part": r"unet: got code of its own \(my_unet\.py\)",
        "flux": "whose unet is a UNet3D, wanted a UNet2DConditionModel",
        "gone": "got no folder of component 'vae'",
        "outside": r"component '\.\./vae'",
    }
    for name, says in refused.items():
        with pytest.raises(InputError, match=says) as caught:
            init_pipeline(str(tmp_path / name), tmp_path / "out", recipe="uniform:2")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no such folder"):
        pipeline_folder(str(tmp_path / "missing"))


def unlink(path: Path) -> None:
    path.unlink()


def point(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 334643268\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def half(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.incomplete"))


def thinned(path: Path) -> None:
    tensors = load_file(path)
    del tensors["encoder.conv_in.weight"]
    save_file(tensors, path)


def emptied(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (f"vae/{UNET_FILE}", unlink, "vae: .*got no weights"),
        (f"vae/{UNET_FILE}", thinned, "vae: encoder.conv_in.weight: got no such tensor"),
        ("vae/config.json", emptied, r"vae: .*vae/config\.json: .*JSON"),
        (f"vae/{UNET_FILE}", point, "vae: .*git-lfs pointer.*git lfs pull"),
        ("model_index.json", point, r".*model_index\.json: got a git-lfs pointer"),
        ("unet/config.json", point, r".*unet/config\.json: got a git-lfs pointer"),
        (f"vae/{UNET_FILE}", cut, "vae: .*wanted a whole safetensors file"),
        (f"vae/{UNET_FILE}", half, "vae: .*got part of a download"),
        ("text_encoder/model.safetensors", unlink, "text_encoder: .*got no weights"),
        ("text_encoder/config.json", unlink, r"text_encoder: .*got no config\.json"),
        ("tokenizer/tokenizer.json", unlink, "tokenizer: .*got no tokenizer.json"),
        ("tokenizer/tokenizer.json", point, "tokenizer: .*git-lfs pointer"),
        ("scheduler/scheduler_config.json", unlink, r"scheduler: .*got no scheduler_config\.json"),
    ],
)
def test_a_source_that_is_not_all_there(source: Path, tmp_path: Path, file: str, change: Any, says: str) -> None:
    shutil.copytree(source, tmp_path / "x")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "x" / "tokenizer" / name).unlink(missing_ok=True)
    change(tmp_path / "x" / file)
    with pytest.raises(InputError, match=f"^{says}") as caught:
        init_pipeline(str(tmp_path / "x"), tmp_path / "out", recipe="uniform:4")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_component_is_left_out(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "x")
    (tmp_path / "x" / "safety_checker").mkdir()
    (tmp_path / "x" / "safety_checker" / "config.json").write_text("{}")
    (tmp_path / "x" / "safety_checker" / "pytorch_model.bin").write_bytes(b"pickle")
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit_json(
        tmp_path / "x" / "model_index.json",
        lambda index: index.update(safety_checker=checker, requires_safety_checker=True),
    )
    with pytest.raises(InputError, match=r"^safety_checker: .*pytorch_model\.bin.*--without safety_checker"):
        init_pipeline(str(tmp_path / "x"), tmp_path / "out", recipe="uniform:4")
    init_pipeline(str(tmp_path / "x"), tmp_path / "out", recipe="uniform:4", without=["safety_checker"])
    verify_folder(tmp_path / "out")
    assert load_pipeline(str(tmp_path / "out")).safety_checker is None
    for name, says in (("vae", "can do without safety_checker only"), ("nothing", "wanted a component of")):
        with pytest.raises(InputError, match=says):
            init_pipeline(str(tmp_path / "x"), tmp_path / "y", recipe="uniform:4", without=[name])
