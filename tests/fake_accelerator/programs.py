"""What runs on the fake accelerator: each function gets it and a folder, and returns JSON.

Where the same is computed on the CPU, the numbers must agree; that nothing waits on the wrong device the accelerator
itself sees to.
"""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload_with_hook

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import layers_to_assign, model_layers
from bitsfusion.architectures.transformer import transformer_kind
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.devices import device_of, placed, resolve
from bitsfusion.diffusion.samplers import SamplerSteps, build_scheduler
from bitsfusion.embedded import SCORER_FOLDER
from bitsfusion.embedded.quick import QUICK
from bitsfusion.evaluation.drawing import generate_to_folder
from bitsfusion.evaluation.evaluate import evaluate
from bitsfusion.evaluation.measures import Metric, clip_measure, pair_measure, world_geneval_measure
from bitsfusion.evaluation.noise import time_step_curve
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.evaluation.setting import Evaluation
from bitsfusion.kernels.fake_quantize import fake_quantize
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import initial_scale
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import EMBEDDED, load_pipeline
from bitsfusion.progress import SILENT
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.packing import init_pipeline
from bitsfusion.runs.run import Run
from bitsfusion.sensitivity.measure import analyze
from bitsfusion.sensitivity.settings import JacobianSettings, NoiseErrorSettings, PaperSettings
from bitsfusion.sensitivity.weight_error import relative_error
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.loop import train
from bitsfusion_lab.reproduction.frame import Frame
from bitsfusion_lab.reproduction.ladder import BALANCE
from bitsfusion_lab.reproduction.settings import Settings
from bitsfusion_lab.reproduction.table import Row, Table, make_table

from ..sensitivity.random_data import RandomData as SensitivityData
from ..tiny.pipeline import build_one_block_pipeline, build_pipeline
from ..tiny.transformers import CONFIGS, build_sd3_pipeline, build_transformer_pipeline
from ..tiny.unet import build_unet
from ..tiny.vae import build_vae
from ..training.small_run import build_student, run_parts
from ..training.test_transformers import Captioned
from .device import Accelerator, Counts

SHORT = TrainingConfig(
    train_batch_size=4, learning_rate=1e-3, max_train_steps=3, checkpointing_steps=None, logging_steps=1
)
RUN: dict[str, Any] = {
    "data": {"kind": "world", "pool": 24},
    "analysis": {"method": "jacobian", "samples": 2},
    "stage1": {"stage": 1, "train_batch_size": 2, "max_train_steps": 1, "validation_prompts": ["a red circle"]},
    "stage2": {"stage": 2, "train_batch_size": 2, "max_train_steps": 1, "ema_decay": 0.9},
    "control": True,
    "serve": {"samplers": {"ddim": 1}},
    "evaluation": {"per_task": 1, "sampler": "ddim", "steps": 1, "guidance": 2.0, "probe_samples": 4},
}
RUN["stage1"]["validation_inference_steps"] = 1


def placement(accelerator: Accelerator, folder: Path) -> Any:
    """Where a pipeline's models are before, inside and after, and after an error inside."""
    pipeline = build_one_block_pipeline()
    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    pipeline.vae.to(accelerator.device)

    def where() -> list[str]:
        return [str(device_of(model)) for model in models]

    seen = [where()]
    try:
        with placed(pipeline, resolve()):
            seen.append(where())
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return [*seen, where()]


def demo(accelerator: Accelerator, folder: Path) -> Any:
    """All steps of a run: their names. The pipeline is afterwards where it was."""
    run = Run(RunConfig.model_validate(RUN), folder / "run")
    run.execute()
    assert run.workspace.device == accelerator.device
    homes = {
        device_of(part) for part in run.workspace.pipeline.components.values() if isinstance(part, torch.nn.Module)
    }
    assert homes == {torch.device("cpu")}, homes
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return [rung["name"] for rung in summary["rungs"]]


def reproduction(accelerator: Accelerator, folder: Path) -> Any:
    """A row of the laboratory's tables, trained and scored there: the labels of the table."""
    settings = Settings(seeds=(0,), steps=1, train_batch_size=2, pool=8, per_task=1, sampler_steps=1, probe_samples=4)
    frame = Frame(settings, folder / "tables")
    assert frame.workspace.device == accelerator.device
    before = accelerator.counts()
    content = make_table(frame, Table(4, "one arm", (Row("ours", BALANCE, None),), None))
    frame.close()
    assert (accelerator.counts() - before).operations > 1000
    return [row["label"] for row in content["rows"]]


def _train(accelerator: Accelerator, folder: Path, **changes: Any) -> Any:
    """The losses on the device and on the CPU; models are afterwards where they were."""
    losses = []
    for name in ("auto", "cpu"):
        teacher = build_unet()
        config = SHORT.model_copy(update={"device": name, **changes})
        student = build_student(teacher)
        whole = build_pipeline(build_unet(), build_vae()) if config.validation_prompts else None
        parts: dict[str, Any] = run_parts(whole)
        before = accelerator.counts()
        result = train(
            student,
            None if config.stage == 2 else teacher,
            config=config,
            out_dir=folder / name,
            **parts,
        )
        used = accelerator.counts() - before
        assert (used.operations > 1000) == (name == "auto"), used
        pipeline = parts["pipeline"]
        for model in (result.student, teacher, pipeline.text_encoder, getattr(pipeline, "vae", None)):
            assert model is None or device_of(model) == torch.device("cpu")
        losses.append(result.loss)
    return losses


def train_plain(accelerator: Accelerator, folder: Path) -> Any:
    return _train(accelerator, folder)


def train_checkpointing_with_average(accelerator: Accelerator, folder: Path) -> Any:
    return _train(
        accelerator, folder, gradient_checkpointing=True, ema_decay=0.9, checkpointing_steps=1, max_grad_norm=None
    )


def train_bfloat16(accelerator: Accelerator, folder: Path) -> Any:
    return _train(accelerator, folder, mixed_precision="bf16", teacher_dtype="bfloat16")


def train_stage_two(accelerator: Accelerator, folder: Path) -> Any:
    return _train(accelerator, folder, stage=2, gradient_accumulation_steps=2, train_batch_size=2)


def train_with_validation(accelerator: Accelerator, folder: Path) -> Any:
    changes = {"validation_prompts": ("red circle",), "validation_steps": 2, "validation_inference_steps": 1}
    losses = _train(accelerator, folder, ema_decay=0.9, **changes)
    assert len(list((folder / "auto" / "validation").rglob("*.png"))) == 2
    return losses


def train_transformers(accelerator: Accelerator, folder: Path) -> Any:
    """The loss of each class of transformer on the device and on the CPU, Stage I."""
    losses: dict[str, list[float]] = {}
    for name in CONFIGS:
        for device in ("auto", "cpu"):
            pipeline = build_transformer_pipeline(name)
            teacher = pipeline.transformer
            student = copy.deepcopy(teacher)
            fake_quantize_model(student, dict.fromkeys(layers_to_assign(student), 2))
            config = TrainingConfig(train_batch_size=2, max_train_steps=2, checkpointing_steps=None, device=device)
            result = train(student, teacher, pipeline, Captioned(pipeline, name), config, folder / name / device)
            assert device_of(result.student) == device_of(teacher) == torch.device("cpu")
            losses.setdefault(name, []).append(result.loss)
    return losses


def resume_on_another_device(accelerator: Accelerator, folder: Path) -> Any:
    """Three steps on the device, then three on the CPU from its checkpoint."""
    seen = []
    for name, last in (("auto", 3), ("cpu", 6)):
        teacher = build_unet()
        config = SHORT.model_copy(update={"device": name, "checkpointing_steps": 3, "max_train_steps": 6})

        def stop(done: int, total: int, values: dict[str, float], last: int = last) -> None:
            if done == last + 1:
                raise KeyboardInterrupt

        try:
            result = train(build_student(teacher), teacher, config=config, out_dir=folder, progress=stop, **run_parts())
            seen.append(result.resumed_from)
        except KeyboardInterrupt:
            seen.append(-1)
    return seen


def syncs_of_a_step(accelerator: Accelerator, folder: Path) -> Any:
    """How often each training step waits for the device."""
    seen: list[Counts] = []
    teacher = build_unet()
    config = SHORT.model_copy(update={"max_train_steps": 5, "ema_decay": 0.9, "logging_steps": 100})
    train(
        build_student(teacher),
        teacher,
        config=config,
        out_dir=folder,
        progress=lambda *_: seen.append(accelerator.counts()),
        **run_parts(),
    )
    return [(after - before).to_host for before, after in itertools.pairwise(seen)]


def _analyze(accelerator: Accelerator, folder: Path, settings: Any, **more: Any) -> Any:
    tables = []
    for device in (accelerator.device, torch.device("cpu")):
        pipeline = build_one_block_pipeline().to(device)
        out = folder / f"{device.type}.json"
        table = analyze(
            pipeline,
            settings,
            out,
            SensitivityData(),
            model="tiny",
            source_sha256=None,
            samplers=(("ddim", 2),),
            **more,
        )
        tables.append([row.mse for row in table.rows])
    return tables


def analyze_noise_error(accelerator: Accelerator, folder: Path) -> Any:
    return _analyze(accelerator, folder, NoiseErrorSettings(samples=2, guidance=2.0))


def analyze_jacobian(accelerator: Accelerator, folder: Path) -> Any:
    return _analyze(accelerator, folder, JacobianSettings(samples=2))


def analyze_paper(accelerator: Accelerator, folder: Path) -> Any:
    settings = PaperSettings(iterations=1, train_batch_size=2, prompts=("red circle",), sampler="ddim", steps=1)
    return _analyze(accelerator, folder, settings)


def weight_error(accelerator: Accelerator, folder: Path) -> Any:
    weight = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    return [relative_error("layer", weight.to(device), 2) for device in (accelerator.device, "cpu")]


def _packed(folder: Path) -> Path:
    init_pipeline(EMBEDDED, folder / "packed", recipe="uniform:2", samplers=[SamplerSteps("ddim", 1)])
    return folder / "packed"


def evaluation(accelerator: Accelerator, folder: Path) -> Any:
    every = world_prompts(QUICK, "test", 1, 7)
    prompts = every.chosen(range(2))
    where = str(accelerator.device)
    asked = Evaluation(
        str(_packed(folder)), EMBEDDED, prompts, "test", sampler="ddim", steps=1, batch_size=2, device=where
    )
    measures = [
        clip_measure(ClipScorer.from_pretrained(SCORER_FOLDER, where), prompts, "scorer"),
        pair_measure(Metric.MSE),
        world_geneval_measure(prompts),
    ]
    scores = evaluate(asked, measures, folder / "out")
    return [result["metric"] for result in scores["results"]]


def generate(accelerator: Accelerator, folder: Path) -> Any:
    """The largest difference of a pixel between a packed model's images on the device and on the CPU."""
    packed = _packed(folder)
    options: dict[str, Any] = {"sampler": "ddim", "steps": 1, "guidance": 2.0, "seed": 3}
    paths = generate_to_folder(str(packed), ["a red circle"], folder / "images", **options)
    prompts, seeds = ["a red circle"], [3]
    images = [
        generate_images(load_pipeline(str(packed)).to(device), prompts, seeds, 1, 2.0, "ddim").astype(int)
        for device in (accelerator.device, "cpu")
    ]
    assert len(paths) == 1
    return int(abs(images[0] - images[1]).max())


def syncs_of_a_sampler_step(accelerator: Accelerator, folder: Path) -> Any:
    """How often the UNet of a packed model waits for the device in one call."""
    unet: Any = load_pipeline(str(_packed(folder))).unet.to(accelerator.device)
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    latents = torch.randn(2, unet.config.in_channels, size, size).to(accelerator.device)
    states = torch.randn(2, 16, width).to(accelerator.device)
    step = torch.tensor(1).to(accelerator.device)
    with torch.no_grad():
        unet(latents, step, states)
        before = accelerator.counts()
        unet(latents, step, states)
    used = accelerator.counts() - before
    return {"to_host": used.to_host, "to_device": used.to_device}


def syncs_of_a_whole_step(accelerator: Accelerator, folder: Path) -> Any:
    """How often each step of a pipeline waits for the device: packed, and dense."""
    seen = []
    init_pipeline(EMBEDDED, folder / "any-step", recipe="uniform:2")
    for model in (str(folder / "any-step"), EMBEDDED):
        pipeline: Any = load_pipeline(model).to(accelerator.device)
        pipeline.scheduler = build_scheduler("ddim", pipeline.scheduler.config)
        counts: list[Counts] = []

        def counted(*args: Any, counts: list[Counts] = counts) -> dict[str, Any]:
            counts.append(accelerator.counts())
            return {}

        pipeline("a red circle", num_inference_steps=4, callback_on_step_end=counted, output_type="latent")
        seen.append([(after - before).to_host for before, after in itertools.pairwise(counts)])
    return seen


def calibrate(accelerator: Accelerator, folder: Path) -> Any:
    """Each layer's calibrated error on the device and on the CPU; the pipeline is afterwards where it was."""
    errors = []
    for device in ("auto", "cpu"):
        pipeline = build_one_block_pipeline()
        bits = {name: 2 for name, layer in model_layers(pipeline.unet).items() if layer.role is LayerRole.QUANTIZED}
        job = CalibrationJob(settings=CalibrationSettings(samples=2, steps=2), device=device)
        made = job.run(pipeline, "tiny", bits, SILENT)
        assert device_of(pipeline.unet) == torch.device("cpu")
        errors.append([layer.error for layer in made.layers.values()])
    return errors


def transformer(accelerator: Accelerator, folder: Path) -> Any:
    """The largest difference between a packed transformer's latents on the CPU and on the device: as a whole, layer by
    layer from the CPU, and with its modulation left on the CPU."""
    build_sd3_pipeline().save_pretrained(folder / "sd3")
    init_pipeline(str(folder / "sd3"), folder / "packed-sd3", recipe="uniform:3")
    drawn = []
    for way in ("cpu", "whole", "sequential", "modulation"):
        pipeline: Any = load_pipeline(str(folder / "packed-sd3"))
        if way == "sequential":
            pipeline.enable_sequential_cpu_offload(device=accelerator.device)
        else:
            pipeline.to("cpu" if way == "cpu" else accelerator.device)
        hook = None
        modulation = {name: part for name, part in pipeline.transformer.named_modules() if name.endswith(".linear")}
        for layer in modulation.values() if way == "modulation" else ():
            _, hook = cpu_offload_with_hook(layer, accelerator.device, hook)
        options = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
        generator = torch.Generator().manual_seed(3)
        drawn.append(pipeline("red circle", generator=generator, **options).images.cpu())
    assert modulation and {transformer_kind(name) for name in modulation} == {"modulation"}
    places = [part.packed.device for part in modulation.values()]
    assert sum(place.type == "cpu" for place in places) == len(places) - 1, places
    return float(max((other - drawn[0]).abs().max() / drawn[0].abs().max() for other in drawn[1:]))


def curve(accelerator: Accelerator, folder: Path) -> Any:
    """Eq. 9's curve on the device and on the CPU."""
    curves = []
    for device in (accelerator.device, torch.device("cpu")):
        pipeline = build_one_block_pipeline().to(device)
        student = build_student(build_one_block_pipeline().unet).to(device)
        points = time_step_curve(student, pipeline, SensitivityData(), 3, 2)
        curves.append([error for _, error in points])
    return curves


def rounding(accelerator: Accelerator, folder: Path) -> Any:
    """Whether a weight is rounded on the device as on the CPU, with equal gradients."""
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = initial_scale(weight, 3)
    made = []
    for device in (accelerator.device, torch.device("cpu")):
        leaves = [tensor.detach().to(device).requires_grad_() for tensor in (weight, scale)]
        value = fake_quantize(*leaves, 3)
        value.square().sum().backward()
        made.append([value.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    return [bool(torch.allclose(one, other, rtol=1e-5)) for one, other in zip(*made, strict=True)]


def strictness(accelerator: Accelerator, folder: Path) -> Any:
    """Whether mixed tensors are refused, and copies both ways counted."""
    there, here = torch.ones(2, 3).to(accelerator.device), torch.ones(2, 3)
    layer = torch.nn.Conv2d(1, 1, 1)

    def refused(work: Any) -> bool:
        try:
            work()
        except RuntimeError as error:
            return "same device" in str(error)
        return False

    before = accelerator.counts()
    here.to(accelerator.device).sum().item()
    used = accelerator.counts() - before
    return {
        "mixed": refused(lambda: there + here),
        "convolution": refused(lambda: layer(torch.ones(1, 1, 2, 2, device=accelerator.device))),
        "counted": [used.to_device, used.to_host],
    }
