from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch
from PIL import Image

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.nn.replace import fake_quantized_layers
from bitsfusion.training.checkpoint import load_student
from bitsfusion.training.config import TimeStepConfig, TrainingConfig
from bitsfusion.training.loop import train
from bitsfusion.training.losses import noise_distillation

from ..tiny.pipeline import build_pipeline
from ..tiny.unet import build_unet
from ..tiny.vae import build_vae
from .small_run import RandomData, build_student, run_parts

SHORT = TrainingConfig(
    train_batch_size=8, learning_rate=1e-3, max_train_steps=3, checkpointing_steps=None, logging_steps=1
)


def distance(student, teacher, parts) -> float:
    batch = RandomData().batch(10_000, 0, 1, 32)
    timesteps = torch.arange(32) * 31
    noise = torch.randn(32, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    noisy = parts["pipeline"].scheduler.add_noise(batch.latents, noise, timesteps)
    with torch.no_grad():
        states = parts["pipeline"].text_encoder(batch.prompts["input_ids"])[0]
        outputs = [unet(noisy, timesteps, states).sample for unet in (student, teacher)]
    return noise_distillation(*outputs).mean().item()


def test_stage_one_brings_the_student_to_its_teacher_and_moves_weights_and_scales(tmp_path):
    teacher, parts = build_unet(), run_parts()
    student = build_student(teacher, bits=1)
    before = distance(student, teacher, parts)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    seen = []

    config = SHORT.model_copy(update={"max_train_steps": 30, "lr_scheduler": "cosine"})
    result = train(student, teacher, config=config, out_dir=tmp_path, progress=lambda *args: seen.append(args), **parts)

    assert distance(result.student, teacher, parts) < 0.7 * before
    for name, layer in fake_quantized_layers(student).items():
        assert not torch.equal(layer.scale, start[f"{name}.scale"]), name
        assert not torch.equal(layer.weight, start[f"{name}.weight"]), name
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[0]["loss"] == pytest.approx(lines[0]["noise_loss"] + 0.01 * lines[0]["feature_loss"], rel=1e-5)
    assert [step for step, _, _ in seen] == list(range(1, 31))
    assert seen[0][1] == 30 and seen[0][2]["loss"] == lines[0]["loss"]


def test_light_training_moves_scales_biases_and_norms_alone(tmp_path):
    teacher, parts = build_unet(), run_parts()
    student = build_student(teacher, bits=1)
    before = distance(student, teacher, parts)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    config = SHORT.model_copy(update={"max_train_steps": 30, "trained": "light", "learning_rate": 3e-3})
    result = train(student, teacher, config=config, out_dir=tmp_path, **parts)
    assert distance(result.student, teacher, parts) < 0.9 * before
    moved = {name for name, value in result.student.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {name for name, value in start.items() if value.dim() == 1}
    assert all(parameter.requires_grad for parameter in result.student.parameters())


def test_light_training_resumes_and_its_checkpoint_is_a_whole_student(tmp_path):
    teacher = build_unet()
    config = SHORT.model_copy(
        update={"max_train_steps": 4, "trained": "light", "ema_decay": 0.5, "checkpointing_steps": 2}
    )
    whole = train(build_student(teacher), teacher, config=config, out_dir=tmp_path / "whole", **run_parts())

    def stop(done: int, total: int, values: dict[str, float]) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(build_student(teacher), teacher, config=config, out_dir=tmp_path / "cut", progress=stop, **run_parts())
    loaded = load_student(tmp_path / "cut" / "checkpoint-2")
    assert loaded.state_dict().keys() == whole.student.state_dict().keys()
    again = train(build_student(teacher), teacher, config=config, out_dir=tmp_path / "cut", **run_parts())
    assert again.resumed_from == 2
    pairs = zip(again.student.state_dict().values(), whole.student.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_final_folder_gives_the_same_student_from_its_files_alone(tmp_path):
    teacher = build_unet()
    config = SHORT.model_copy(update={"ema_decay": 0.5})
    result = train(build_student(teacher), teacher, config=config, out_dir=tmp_path, **run_parts())
    loaded = load_student(tmp_path)
    saved = result.student.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert {n: layer.bits for n, layer in fake_quantized_layers(loaded).items()}["conv_in"] == 8
    again = train(build_student(teacher), teacher, config=config, out_dir=tmp_path, **run_parts())
    assert again.resumed_from == 3 and again.loss == result.loss
    assert all(torch.equal(value, saved[name]) for name, value in again.student.state_dict().items())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_stage_two_needs_no_teacher(tmp_path, prediction_type):
    parts = run_parts()
    parts["pipeline"].scheduler.register_to_config(prediction_type=prediction_type)
    config = SHORT.model_copy(update={"stage": 2, "gradient_checkpointing": True})
    result = train(build_student(build_unet()), None, config=config, out_dir=tmp_path, **parts)
    assert math.isfinite(result.loss) and result.steps == 3
    assert "feature_loss" not in (tmp_path / "log.jsonl").read_text()


def test_gradient_checkpointing_changes_memory_not_results(tmp_path):
    teacher, losses = build_unet(), []
    for on in (False, True):
        config = SHORT.model_copy(update={"gradient_checkpointing": on})
        result = train(build_student(teacher), teacher, config=config, out_dir=tmp_path / str(on), **run_parts())
        losses.append(result.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_accumulation_of_two_times_four_equals_one_batch_of_eight(tmp_path):
    teacher, seen = build_unet(), []
    for count in (1, 2):
        config = SHORT.model_copy(update={"train_batch_size": 8 // count, "gradient_accumulation_steps": count})
        train(build_student(teacher), teacher, config=config, out_dir=tmp_path / str(count), **run_parts())
        seen.append([json.loads(line) for line in (tmp_path / str(count) / "log.jsonl").read_text().splitlines()])
    for one, two in zip(*seen, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_sample(tmp_path):
    teacher, parts = build_unet(), run_parts()
    student = build_student(teacher)
    parts["data"] = RandomData(broken=(1,))
    with pytest.raises(BitsFusionError, match=r"step 2: loss is nan; rank 0, .*'sample 1\.1' at t=") as caught:
        train(student, teacher, config=SHORT, out_dir=tmp_path, **parts)
    assert "sample 1.0" not in str(caught.value)
    assert all(value.isfinite().all() for value in student.state_dict().values())
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_without_dropping_text_the_null_prompt_is_not_seen(tmp_path):
    """p = 1 makes every caption the null prompt: the two runs' losses differ from the first step."""
    teacher, losses = build_unet(), []
    for p in (0.0, 1.0):
        config = SHORT.model_copy(update={"text_dropout": p, "max_train_steps": 1})
        result = train(build_student(teacher), teacher, config=config, out_dir=tmp_path / str(p), **run_parts())
        losses.append(result.loss)
    assert losses[0] != losses[1]


def test_bfloat16_trains_close_to_float32(tmp_path):
    from accelerate.state import AcceleratorState

    teacher, losses = build_unet(), []
    try:
        for precision in ("no", "bf16"):
            AcceleratorState._reset_state()
            config = SHORT.model_copy(update={"mixed_precision": precision})
            student = build_student(teacher)
            losses.append(train(student, teacher, config=config, out_dir=tmp_path / precision, **run_parts()).loss)
            assert student.conv_in.weight.dtype == torch.float32
    finally:
        AcceleratorState._reset_state()
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


class TestRefuses:
    def test_a_student_that_is_not_quantized(self, tmp_path):
        with pytest.raises(InputError, match="without fake-quantized layers"):
            train(build_unet(), build_unet(), config=SHORT, out_dir=tmp_path, **run_parts())

    def test_a_teacher_that_shares_weights(self, tmp_path):
        student = build_student(build_unet())
        with pytest.raises(InputError, match="shares weights"):
            train(student, student, config=SHORT, out_dir=tmp_path, **run_parts())

    def test_shards_of_one_process(self, tmp_path):
        teacher = build_unet()
        config = SHORT.model_copy(update={"shard": True})
        with pytest.raises(InputError, match="shard: got one process, wanted several"):
            train(build_student(teacher), teacher, config=config, out_dir=tmp_path, **run_parts())

    def test_stage_one_without_teacher(self, tmp_path):
        with pytest.raises(InputError, match="teacher: got none"):
            train(build_student(build_unet()), None, config=SHORT, out_dir=tmp_path, **run_parts())


def test_full_precision_trains_on_in_stage_two(tmp_path):
    """The control: the same stage without quantization."""
    unet = build_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    config = SHORT.model_copy(update={"stage": 2})
    result = train(unet, None, config=config, out_dir=tmp_path, **run_parts())
    assert any(not torch.equal(value, before[name]) for name, value in result.student.state_dict().items())
    loaded = load_student(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in result.student.state_dict().items())


def test_uniform_time_steps_train_too(tmp_path):
    teacher = build_unet()
    config = SHORT.model_copy(update={"timesteps": TimeStepConfig(kind="uniform"), "feature_weight": 0.0})
    result = train(build_student(teacher), teacher, config=config, out_dir=tmp_path, **run_parts())
    assert math.isfinite(result.loss)


def test_validation_images_are_drawn_and_change_nothing(tmp_path):
    teacher, students = build_unet(), []
    prompts = {"validation_prompts": ("red circle", "blue"), "validation_steps": 2, "validation_inference_steps": 2}
    for name, changes in (("without", {}), ("with", prompts)):
        config = SHORT.model_copy(update={"ema_decay": 0.9, **changes})
        parts = run_parts(build_pipeline(teacher, build_vae())) if changes else run_parts()
        result = train(build_student(teacher), teacher, config=config, out_dir=tmp_path / name, **parts)
        students.append(result.student.state_dict())
    drawn = sorted(path.relative_to(tmp_path / "with").as_posix() for path in tmp_path.rglob("*.png"))
    assert drawn == [f"validation/step-{step}/{number}.png" for step in (2, 3) for number in ("000", "001")]
    with Image.open(tmp_path / "with" / drawn[0]) as image:
        assert image.size == (8, 8)
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
    with pytest.raises(InputError, match="validation_prompts: got prompts and no VAE"):
        train(build_student(teacher), teacher, config=config, out_dir=tmp_path / "none", **run_parts())


def test_a_16_bit_teacher_gives_nearly_the_same_losses(tmp_path):
    losses = []
    for dtype in ("float32", "bfloat16"):
        teacher = build_unet()
        config = SHORT.model_copy(update={"teacher_dtype": dtype, "max_train_steps": 1})
        result = train(build_student(teacher), teacher, config=config, out_dir=tmp_path / dtype, **run_parts())
        assert teacher.dtype == getattr(torch, dtype)
        losses.append(result.loss)
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_missing_package_is_one_line(tmp_path):
    teacher = build_unet()
    for changes, message in (
        ({"use_8bit_adam": True}, "bitsandbytes"),
        ({"report_to": "wandb"}, "report_to: got wandb"),
    ):
        name = message.split()[0]
        if importlib.util.find_spec("bitsandbytes" if "8bit" in str(changes) else "wandb"):
            continue
        config = SHORT.model_copy(update=changes)
        with pytest.raises(InputError, match=message):
            train(build_student(teacher), teacher, config=config, out_dir=tmp_path / name, **run_parts())


def test_metrics_reach_a_tracker(tmp_path):
    pytest.importorskip("tensorboard")
    teacher = build_unet()
    config = SHORT.model_copy(update={"report_to": "tensorboard"})
    train(build_student(teacher), teacher, config=config, out_dir=tmp_path, **run_parts())
    assert list((tmp_path / "bitsfusion").glob("events.*"))
