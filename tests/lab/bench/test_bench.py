"""What `bitsfusion bench` measures, held against figures computed another way; the whole command at the end."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.writer import write_model, write_pipeline
from bitsfusion.embedded import PIPELINE_FOLDER
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion_lab.bench.bench_file import BenchResult, BenchRow, Dtype
from bitsfusion_lab.bench.inputs import forward_inputs
from bitsfusion_lab.bench.layers import LayerMeasurement, measure_layers, model_bytes, sqnr_db
from bitsfusion_lab.bench.methods import DENSE, OURS, PEERS, chosen_peers, method_called
from bitsfusion_lab.bench.methods.base import load_dense
from bitsfusion_lab.bench.process import MethodFailed, WorkerProcess
from bitsfusion_lab.bench.subject import find_subject
from bitsfusion_lab.bench.work import Work
from bitsfusion_lab.bench.worker import Worker

from ...command import refusal, run
from ...tiny.transformers import build_transformer

UNET = PIPELINE_FOLDER / "unet"
INSTALLED = [name for name, method in PEERS.items() if method.version() is not None]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The embedded model at 2 bits, packed."""
    pipeline = load_pipeline("embedded")
    layers = model_layers(pipeline.unet)
    fake_quantize_model(
        pipeline.unet,
        {name: 2 for name, layer in layers.items() if layer.role is not LayerRole.TIME},
        ScaleInit.MINMAX,
    )
    folder = tmp_path_factory.mktemp("packed") / "model"
    write_pipeline(pipeline, pipeline.unet, folder, (("pndm", 50),))
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The embedded model's float32 folder, saved as the dense method does."""
    out = tmp_path_factory.mktemp("dense")
    Worker("dense-fp32", Dtype.FP32, 1).prepare(str(UNET), str(out))
    return out


def test_a_bf16_copy_has_the_noise_of_rounding(reference):
    model = load_dense(UNET, torch.bfloat16)
    layers = measure_layers(model, method_called("dense-bf16"), reference / "diffusion_pytorch_model.safetensors")
    assert set(layers) == set(model_layers(model))
    assert not any(layer.quantized for layer in layers.values())
    assert sum(layer.bytes for layer in layers.values()) == 2 * sum(layer.weights for layer in layers.values())
    total = sqnr_db(sum(x.signal for x in layers.values()), sum(x.noise for x in layers.values()))
    # Rounding to 8 significant bits: an error uniform within half a step, whose square averages to about 2^-18.5 w^2.
    assert total == pytest.approx(10 * math.log10(2**18.5), abs=1)


def test_packed_layers_are_counted_and_compared(packed, reference):
    model = load_dense(packed / "unet", torch.float32)
    layers = measure_layers(model, method_called(OURS), reference / "diffusion_pytorch_model.safetensors")
    inspection = inspect_folder(packed)
    assert all(layer.quantized for layer in layers.values())
    assert {name: layer.bytes for name, layer in layers.items()} == {
        layer.name: layer.bytes_in_memory for layer in inspection.layers
    }
    assert model_bytes(model) > sum(layer.bytes for layer in layers.values())
    dense = load_dense(UNET, torch.float32)
    name = "mid_block.resnets.0.conv1"
    original, used = (unet.get_submodule(name).weight.detach().double() for unet in (dense, model))
    assert layers[name].noise == pytest.approx(float((original - used).square().sum()))
    assert layers[name].signal == pytest.approx(float(original.square().sum()))


def test_no_noise_has_no_ratio():
    assert sqnr_db(1.0, 0.0) is None
    assert sqnr_db(100.0, 1.0) == pytest.approx(20)


def test_inputs_are_the_same_everywhere_and_fit_sdxl():
    config = read_json(UNET / "config.json")
    one, other = (forward_inputs(config, step=500, batch=2, latent=8) for _ in range(2))
    assert one.sha256() == other.sha256() != forward_inputs(config, step=501, batch=2, latent=8).sha256()
    sdxl = {
        "in_channels": 4,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    inputs = forward_inputs(sdxl, step=1, batch=3, latent=16)
    added = inputs.conditioning.to("cpu", torch.bfloat16).keywords()["added_cond_kwargs"]
    assert {name: list(tensor.shape) for name, tensor in added.items()} == {
        "text_embeds": [3, 1280],
        "time_ids": [3, 6],
    }
    with pytest.raises(InputError, match="class_embed_type"):
        forward_inputs(config | {"class_embed_type": "timestep"}, step=1, batch=1, latent=8)


def test_a_worker_loads_and_runs_at_a_covered_step(packed, tmp_path):
    subject = find_subject(packed, "embedded")
    assert subject.step in subject.packed_config.time_features.steps
    outputs = {}
    for name, folder in (("dense-fp32", UNET), (OURS, packed / "unet")):
        worker = Worker(name, Dtype.FP32, 1)
        assert worker.load(str(folder), subject.step, 2, 8)["load_seconds"] > 0
        answer = worker.forward(str(tmp_path / f"{name}.safetensors"))
        assert answer["peak_rss"] > 1e8
        outputs[name] = load_file(tmp_path / f"{name}.safetensors")["output"]
    assert outputs[OURS].shape == (2, 12, 8, 8)
    error = float((outputs[OURS] - outputs["dense-fp32"]).norm() / outputs["dense-fp32"].norm())
    assert 0 < error < 1


def test_transformers_are_measured(tmp_path):
    """Dense, packed and, where the library is there, a peer: the same layers, and outputs that are theirs."""
    model = build_transformer("Flux2Transformer2DModel", attention_head_dim=32, axes_dims_rope=(8, 8, 8, 8))
    model.save_pretrained(tmp_path / "dense")
    names = list(model_layers(model))
    fake_quantize_model(model, dict.fromkeys(names, 3), ScaleInit.MINMAX)
    write_model(model, tmp_path / OURS, None)
    assert set(find_subject(tmp_path / OURS, str(tmp_path / "dense")).weights) == set(names)
    outputs = {}
    for name in ("dense-fp32", OURS, *(name for name in INSTALLED if name == "gguf-q8_0")):
        worker, folder = Worker(name, Dtype.FP32, 1), tmp_path / name
        if name != OURS:
            folder.mkdir()
            worker.prepare(str(tmp_path / "dense"), str(folder))
        worker.load(str(folder), 500, 1, 8)
        worker.forward(str(tmp_path / "output.safetensors"))
        outputs[name] = load_file(tmp_path / "output.safetensors")["output"]
        layers = worker.layers(str(tmp_path / "dense-fp32" / "diffusion_pytorch_model.safetensors"))["layers"]
        assert set(layers) == set(names)
        assert any(layer["quantized"] for layer in layers.values()) == (name != "dense-fp32")
    dense = outputs.pop("dense-fp32")
    assert dense.shape == (1, 16, 8, 8)
    assert all(0 < float((output - dense).norm() / dense.norm()) < 1 for output in outputs.values())


def test_another_model_is_refused_by_name(packed, tmp_path, capsys):
    config = read_json(UNET / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 128}))
    line = refusal(capsys, "bench", packed, "--against", tmp_path, "--peers", "none", "--out", tmp_path / "b.json")
    assert "attn2.to_k: got [64, 96], wanted [64, 128]" in line
    assert not (tmp_path / "b.json").exists()


def test_wrong_input_is_one_line(packed, tmp_path, capsys):
    missing = tmp_path / "missing"
    more = ["--out", tmp_path / "b.json"]
    assert "missing: no such folder" in refusal(capsys, "bench", missing, "--against", "embedded", *more)
    assert "missing: no such folder" in refusal(capsys, "bench", packed, "--against", missing, *more)
    assert "got no packed model" in refusal(capsys, "bench", PIPELINE_FOLDER, "--against", "embedded", *more)
    assert "wanted the dense one" in refusal(capsys, "bench", packed, "--against", packed, *more)
    line = refusal(capsys, "bench", packed, "--against", "embedded", "--peers", "quanto-int3", *more)
    assert "got 'quanto-int3', wanted all, none, or some of quanto-int2" in line


def test_peers_are_chosen_by_name_or_library():
    assert chosen_peers("none") == []
    assert chosen_peers("all") == INSTALLED
    missing = next((name for name in PEERS if name not in INSTALLED), None)
    if missing is not None:
        with pytest.raises(InputError, match="pip install"):
            chosen_peers(missing)
    if "gguf-q8_0" in INSTALLED:
        others = [name for name in INSTALLED if name.startswith("gguf-") and name != "gguf-q8_0"]
        assert chosen_peers("gguf-q8_0,gguf") == ["gguf-q8_0", *others]


def test_a_failing_worker_is_one_line(tmp_path):
    with WorkerProcess("dense-bf16", Dtype.BF16, 1) as worker:
        with pytest.raises(MethodFailed) as failed:
            worker.ask("load", folder=str(tmp_path), step=1, batch=1, latent=8)
        assert len(str(failed.value).splitlines()) == 1
        worker._process.terminate()
        with pytest.raises(MethodFailed, match="SIGTERM"):
            worker.ask("forward")


def test_rows_of_an_interrupted_run_are_found_and_those_of_another_are_not(tmp_path):
    row = BenchRow(name="dense-bf16", library="diffusers", version="1", settings={}, load_seconds=1.5)
    work = Work(tmp_path, ["this"])
    work.keep(row)
    assert Work(tmp_path, ["this"]).row(row.name) is None  # its output is not there
    work.output(row.name).touch()
    assert Work(tmp_path, ["this"]).row(row.name) == row
    assert Work(tmp_path, ["that"]).row(row.name) is None
    work.keep_rounds(["dense-bf16", OURS], [{"dense-bf16": 1.0, OURS: 1.1}])
    assert Work(tmp_path, ["this"]).rounds(["dense-bf16", OURS]) == [{"dense-bf16": 1.0, OURS: 1.1}]
    assert Work(tmp_path, ["this"]).rounds(["dense-bf16"]) == []
    work.finish()
    again = Work(tmp_path, ["this"])
    assert again.row(row.name) is None
    assert again.rounds(["dense-bf16", OURS]) == []


@pytest.mark.parametrize("name", INSTALLED)
def test_a_peer_gives_back_what_it_was_given(name, tmp_path, reference):
    """Skipped where no peer is installed. More bits than two bring the weights back to 15 dB and better."""
    worker = Worker(name, Dtype.BF16, 1)
    worker.prepare(str(UNET), str(tmp_path))
    worker.load(str(tmp_path), 500, 1, 8)
    layers = worker.layers(str(reference / "diffusion_pytorch_model.safetensors"))["layers"].values()
    measured = [LayerMeasurement(**layer) for layer in layers]
    total = sqnr_db(sum(layer.signal for layer in measured), sum(layer.noise for layer in measured))
    assert total > (4 if "int2" in name else 15)
    assert sum(layer.quantized for layer in measured) >= (16 if "q2_k" in name else 40)  # whose blocks are 256 wide
    worker.forward(str(tmp_path / "output.safetensors"))
    assert bool(torch.isfinite(load_file(tmp_path / "output.safetensors")["output"]).all())


@pytest.mark.slow
def test_the_command_measures_dense_ours_and_a_peer(packed, tmp_path, capsys):
    peer = "gguf-q8_0" if "gguf-q8_0" in INSTALLED else "none"
    out = tmp_path / "bench.json"
    options = ["--against", "embedded", "--peers", peer, "--latent", "8", "--batch", "1", "--repeats", "2"]
    assert run("bench", packed, *options, "--threads", 1, "--out", out, "--quiet") == 0
    assert "dense-bf16" in capsys.readouterr().out
    result = BenchResult.model_validate(read_json(out))
    rows = {row.name: row for row in result.rows}
    assert list(rows) == ["dense-fp32", "dense-bf16", OURS, *([] if peer == "none" else [peer])]
    assert all(row.error is None and len(row.forward_seconds) == 2 for row in rows.values())
    ours, dense = rows[OURS], rows["dense-bf16"]
    files = [path for path in (packed / "unet").rglob("*") if path.is_file()]
    assert ours.bytes_on_disk == sum(path.stat().st_size for path in files)
    inspection = inspect_folder(packed)
    assert (ours.weights, ours.weights_removed) == (inspection.weights, inspection.removed_weights)
    assert (ours.weights_dense, dense.weights_dense) == (0, inspection.weights)
    assert dense.bits_on_disk == pytest.approx(16, abs=0.3)
    assert dense.forward_ratio == 1
    assert dense.output_error_dense == 0
    assert 0 < dense.output_error < 0.05 < ours.output_error
    kept = {path.name.rpartition("-")[0] for path in (tmp_path / "bench.work").iterdir() if path.is_dir()}
    assert kept == {name for name in rows if name in DENSE or name in PEERS}
