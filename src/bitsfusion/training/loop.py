"""The training loop of both stages, on Accelerate (section 4.2)."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bitsfusion.data.batches import TrainingData
from bitsfusion.devices import device_of, placed
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.diffusion.process import process_of
from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.io.ahead import ahead
from bitsfusion.nn.replace import fake_quantized_layers
from bitsfusion.training.accelerator import build_accelerator
from bitsfusion.training.checkpoint import (
    STUDENT_INFO,
    TrainingState,
    check_same_run,
    find_checkpoint,
    identity,
    load_checkpoint,
    load_finished,
    remove_leftovers,
    save_checkpoint,
    save_student,
)
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.ema import ExponentialMovingAverage
from bitsfusion.training.log import LOG_NAME, append_log, cut_log, read_log
from bitsfusion.training.objective import Objective
from bitsfusion.training.optimizer import build_optimizer, choose_trained, learning_rate_factor
from bitsfusion.training.samples import Sample, draw_sample
from bitsfusion.training.sharding import is_sharded, shard, synchronize
from bitsfusion.training.validation import Validation

Progress: TypeAlias = Callable[[int, int, dict[str, float]], None]
"""Called after each step, on the main process: (steps done, steps in all, this step's metrics)."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished stage.

    student: fake-quantized, in eval mode, with the averaged weights if an average was kept.
    loss: the last line's of the log (a mean over logging_steps). seconds: of all sessions together.
    resumed_from: the step this session began at, 0 for a fresh start.
    """

    student: ModelMixin
    folder: Path
    steps: int
    loss: float
    seconds: float
    resumed_from: int


def train(
    student: ModelMixin,
    teacher: ModelMixin | None,
    pipeline: Any,
    data: TrainingData,
    config: TrainingConfig,
    out_dir: Path,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains one stage and writes checkpoints, log.jsonl and the final student to `out_dir`.

    Models compute on config.device and are afterwards where they were. All of the student's parameters train:
    weights and scales of the quantized layers, biases, norms and the time layers (their features are cached after
    training); or, where config.trained is light, scales, biases and norms alone. Dropout is off. After a kill the same
    call resumes from the latest checkpoint and ends, on the same machine and number of processes, with the same bits;
    after the end it loads the result. Several processes give what one gives at the same samples a step, within
    rounding.

    Args:
        student: a fake-quantized denoiser, trained in place; a full-precision one in Stage II is the control, what
            training on is worth without quantization.
        teacher: the full-precision denoiser, sharing no parameter with the student; Stage I only. Gets frozen, and
            cast to config.teacher_dtype in place.
        pipeline: gives the text encoders, which get frozen, their tokenizers, the scheduler's config, and what
            config.validation_prompts are drawn with; its own denoiser is not used and may be None.
        data: where batches come from.
        config: options; Stage I distils (Eqs. 6, 7), Stage II predicts the noise.
        out_dir: is made; one stage per folder.
        progress: see `Progress`.

    Raises:
        InputError: models, data and config that do not go together, or a checkpoint of another run.
        BitsFusionError: a loss or gradient that is not finite; names the step and the samples. Nothing of the
            failed step is kept.
    """
    _check(student, teacher, config)
    conditioner, process = conditioner_of(pipeline, student), process_of(pipeline.scheduler, student)
    out_dir = Path(out_dir)
    accelerator = build_accelerator(config, out_dir)
    accumulation = config.accumulation(accelerator.num_processes)
    validation = Validation(student, pipeline, config)
    info = identity(student, config.deciding(accelerator.num_processes), data.fingerprint, accelerator.num_processes)
    checkpoint = find_checkpoint(out_dir, config.resume_from_checkpoint)
    if (out_dir / STUDENT_INFO).exists() and config.resume_from_checkpoint == "latest":
        check_same_run(out_dir, info)
        load_finished(out_dir, student)
        return _result(student.eval(), out_dir, config.max_train_steps)

    for frozen in (*conditioner.encoders, teacher):
        if frozen is not None:
            frozen.requires_grad_(False).eval()
    if teacher is not None:
        teacher.to(getattr(torch, config.teacher_dtype))
    sharded = config.shard or accelerator.distributed_type == DistributedType.FSDP
    home = device_of(student)
    choose_trained(student, config)
    student.eval().to(accelerator.device)
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    if sharded:
        shard(student)
    optimizer, names = build_optimizer(student, config, accelerator.device)
    trained = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    parameters = [trained[name] for name in names]
    ema = ExponentialMovingAverage(trained.items(), config.ema_decay) if config.ema_decay else None
    # A sharded student is left as it is: Accelerate would gather its weights in 16 bits, before the quantizer.
    model, stepper = (student, optimizer) if sharded else accelerator.prepare(student, optimizer)
    state = TrainingState(student, optimizer, names, ema, config.use_8bit_adam, accelerator.scaler)
    if checkpoint:
        load_checkpoint(checkpoint, state, info)
    resumed_from = state.step
    main = accelerator.is_main_process
    if main:
        out_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out_dir)
        cut_log(out_dir / LOG_NAME, state.step)
    accelerator.wait_for_everyone()

    if config.report_to:
        accelerator.init_trackers("bitsfusion", {key: str(value) for key, value in config.deciding().items()})
    factor = learning_rate_factor(config)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    size = config.train_batch_size * accumulation
    rank, processes = accelerator.process_index, accelerator.num_processes
    began = time.monotonic() - state.seconds

    def sample_of(step: int) -> tuple[Sample, list[Sample]]:
        batch = data.batch(step, rank, processes, size)
        sample = draw_sample(batch, config, process, rank * size, step)
        return sample, [part.pinned(accelerator.device) for part in sample.split(config.train_batch_size)]

    with contextlib.ExitStack() as stack:
        stack.enter_context(placed([*conditioner.encoders, teacher, *validation.models], accelerator.device))
        objective = Objective(student, teacher, conditioner, process, config, accelerator, stack)
        samples = stack.enter_context(
            contextlib.closing(ahead(sample_of, range(state.step, config.max_train_steps), threads=1))
        )
        for sample, parts in samples:
            for group, base in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = base * factor(state.step)
            losses, errors = _accumulate(accelerator, model, objective, parts)
            if config.max_grad_norm is not None:
                losses["grad_norm"] = _clip(accelerator, parameters, config.max_grad_norm, sharded)
            metrics = _read(losses)
            if state.scaler and not math.isfinite(metrics.get("grad_norm", 0.0)):
                del metrics["grad_norm"]  # fp16 overflowed: the loss scaler skips this step and mends itself
            if not all(map(math.isfinite, metrics.values())):
                raise BitsFusionError(_not_finite(state.step, rank, metrics, errors, sample))
            stepper.step()
            stepper.zero_grad()
            state.step += 1
            if ema:
                ema.update(state.step)
            state.seconds = time.monotonic() - began
            if main:
                _after_step(accelerator, state, metrics, config, out_dir, progress)
            every = config.checkpointing_steps
            if (main or sharded) and every and state.step % every == 0 and state.step < config.max_train_steps:
                save_checkpoint(out_dir, state, info, config.checkpoints_total_limit, main)
            if (main or sharded) and validation.due(state.step):
                with objective.paused(), ema.in_place() if ema else contextlib.nullcontext():
                    validation.draw(out_dir / "validation" / f"step-{state.step}", main)

    accelerator.wait_for_everyone()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if ema:
        ema.copy_to_parameters()
    if config.gradient_checkpointing:
        student.disable_gradient_checkpointing()
    if main or sharded:
        save_student(out_dir, student, {**info, "step": state.step}, main)
    accelerator.wait_for_everyone()
    if config.report_to:
        accelerator.end_training()
    accelerator.free_memory()
    student.requires_grad_(True)
    if home is not None and not sharded:
        student.to(home)
    return _result(student, out_dir, state.step, state.seconds, resumed_from)


def _check(student: ModelMixin, teacher: ModelMixin | None, config: TrainingConfig) -> None:
    if config.stage == 1 and not fake_quantized_layers(student):
        raise InputError("student: got a model without fake-quantized layers, wanted one after fake_quantize_model")
    if config.stage == 1:
        if teacher is None:
            raise InputError("teacher: got none, wanted the full-precision model in Stage I")
        own = {parameter.data_ptr() for parameter in student.parameters()}
        if any(parameter.data_ptr() in own for parameter in teacher.parameters()):
            raise InputError("teacher: shares weights with the student, wanted a deep copy taken before quantizing")


def _accumulate(
    accelerator: Accelerator, model: nn.Module, objective: Objective, parts: Sequence[Sample]
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of all micro-batches; their losses averaged over them and over processes, and each own sample's.

    Nothing waits for the device.
    """
    losses: list[dict[str, Tensor]] = []
    errors: list[Tensor] = []
    for part in parts:
        more = part is not parts[-1]
        if is_sharded(model):
            synchronize(model, not more)
        with accelerator.no_sync(model) if more and not is_sharded(model) else contextlib.nullcontext():
            measured, sample_errors = objective(model, part.to(accelerator.device))
            accelerator.backward(measured["loss"] / len(parts))
        losses.append({name: value.detach() for name, value in measured.items()})
        errors.append(sample_errors)
    means = torch.stack([torch.stack(list(values.values())) for values in losses]).mean(0)
    means = accelerator.gather(means[None]).mean(0)
    return dict(zip(losses[0], means.unbind(), strict=True)), torch.cat(errors)


def _clip(accelerator: Accelerator, parameters: Sequence[nn.Parameter], limit: float, sharded: bool) -> Tensor:
    """Scales the gradients down to `limit`; their norm before."""
    if not sharded:
        return torch.as_tensor(accelerator.clip_grad_norm_(parameters, limit))
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _read(values: dict[str, Tensor]) -> dict[str, float]:
    """The step's numbers, in the one moment that waits for the device."""
    read: list[float] = torch.stack([value.float() for value in values.values()]).tolist()
    return dict(zip(values, read, strict=True))


def _not_finite(step: int, rank: int, metrics: dict[str, float], errors: Tensor, sample: Sample) -> str:
    what = next(f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value))
    finite = errors.isfinite().tolist()
    bad = [
        f"{name!r} at t={int(t)}"
        for name, t, fine in zip(sample.batch.names or ("?",) * len(finite), sample.timesteps, finite, strict=True)
        if not fine
    ]
    where = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "") if bad else "no single sample"
    return f"training stopped at step {step + 1}: {what}; rank {rank}, of {len(finite)} samples not finite: {where}"


def _after_step(
    accelerator: Accelerator,
    state: TrainingState,
    metrics: dict[str, float],
    config: TrainingConfig,
    out_dir: Path,
    progress: Progress | None,
) -> None:
    state.window.add(metrics)
    rates = {"learning_rate": state.optimizer.param_groups[0]["lr"]}
    if config.scale_learning_rate:
        rates["scale_learning_rate"] = state.optimizer.param_groups[1]["lr"]
    if state.step % config.logging_steps == 0 or state.step == config.max_train_steps:
        means = state.window.means()
        append_log(out_dir / LOG_NAME, {"step": state.step, **means, **rates, "seconds": round(state.seconds, 3)})
        if config.report_to:
            accelerator.log({**means, **rates}, step=state.step)
    if progress:
        progress(state.step, config.max_train_steps, {**metrics, **rates})


def _result(
    student: ModelMixin,
    out_dir: Path,
    steps: int,
    seconds: float | None = None,
    resumed_from: int | None = None,
) -> TrainingResult:
    last = (read_log(out_dir / LOG_NAME) or [{}])[-1]
    return TrainingResult(
        student=student,
        folder=out_dir,
        steps=steps,
        loss=last.get("loss", math.nan),
        seconds=last.get("seconds", math.nan) if seconds is None else seconds,
        resumed_from=steps if resumed_from is None else resumed_from,
    )
