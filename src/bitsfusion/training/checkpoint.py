"""Checkpoints that a killed run resumes from exactly: safetensors and JSON, written whole or not at all.

`checkpoint-{step}/` holds student.safetensors (parameters), ema.safetensors (their averages, if kept),
optimizer.safetensors (AdamW's moments), student.json (identity: bits, config, data) and state.json (the rest).
A finished stage leaves student.safetensors and student.json in its own folder. Randomness needs no state: it is
a function of (seed, step, place in the step's samples), as is the learning rate of the step.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitsfusion.architectures.registry import denoiser_called
from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.io.atomic import atomic_folder, atomic_path
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.nn.replace import fake_quantize_model, fake_quantized_layers
from bitsfusion.training.ema import ExponentialMovingAverage
from bitsfusion.training.log import Window
from bitsfusion.training.sharding import gathered, is_sharded, load_into, shard_of

SCHEMA_VERSION = 2
"""Of student.json and state.json. Version 1 called the student's architecture by one family's name."""
STUDENT_WEIGHTS = "student.safetensors"
STUDENT_INFO = "student.json"
_AVERAGES = "ema.safetensors"
_MOMENTS = "optimizer.safetensors"
_STATE = "state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class TrainingState:
    """All that changes from step to step."""

    student: nn.Module
    optimizer: torch.optim.Optimizer
    names: list[str]
    """The names of the parameters, in the optimizer's order."""
    ema: ExponentialMovingAverage | None
    counts_in_int: bool = False
    """The optimizer's step counts are Python's (bitsandbytes) and not tensors."""
    scaler: Any = None
    """torch's GradScaler under fp16."""
    step: int = 0
    seconds: float = 0.0
    window: Window = field(default_factory=Window)


def identity(student: Any, config: Mapping[str, Any], data: str, processes: int) -> dict[str, Any]:
    """What a run is, for student.json: a resumed run must agree in config, data and bits.

    Args:
        student: a fake-quantized denoiser.
        config: `TrainingConfig.deciding(processes)`.
        data: the data's fingerprint.
        processes: how many train together; noted only, another number gives the same but for rounding.
    """
    architecture = json.loads(student.to_json_string())
    return {
        "schema_version": SCHEMA_VERSION,
        "config": dict(config),
        "data": data,
        "processes": processes,
        "bits": {name: layer.bits for name, layer in fake_quantized_layers(student).items()},
        "model": {key: value for key, value in architecture.items() if key == "_class_name" or not key.startswith("_")},
    }


def check_same_run(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Raises an `InputError` that names the fields in which `folder`'s student.json differs from `wanted`."""
    saved = _read_info(folder)
    flat_saved, flat_wanted = (
        _flat({k: v for k, v in info.items() if k not in ("model", "step", "processes")}) for info in (saved, wanted)
    )
    keys = [key for key in {**flat_saved, **flat_wanted} if flat_saved.get(key) != flat_wanted.get(key)]
    if keys:
        shown = ", ".join(f"{key} {flat_saved.get(key)!r} is now {flat_wanted.get(key)!r}" for key in keys[:6])
        more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
        raise InputError(
            f"{folder}: a run resumes only as it was begun, but {shown}{more}; wanted another output folder"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item})
    return flat


def _read_info(folder: Path) -> dict[str, Any]:
    info = read_json(folder / STUDENT_INFO)
    version = info.get("schema_version") if isinstance(info, dict) else None
    if version not in (1, SCHEMA_VERSION):
        raise InputError(f"{folder / STUDENT_INFO}: got schema_version {version!r}, wanted {SCHEMA_VERSION} or 1")
    assert isinstance(info, dict)
    if version == 1:
        return {"model" if key == "unet" else key: value for key, value in info.items()} | {
            "schema_version": SCHEMA_VERSION
        }
    return info


def checkpoints(out_dir: Path) -> list[Path]:
    """The checkpoint folders in `out_dir`, oldest step first."""
    steps = {int(match[1]): path for path in out_dir.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))}
    return [steps[step] for step in sorted(steps)]


def find_checkpoint(out_dir: Path, resume: str | None) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means; None for a fresh start.

    Raises:
        InputError: a path that is no checkpoint; or None although `out_dir` already holds a run.
    """
    found = checkpoints(out_dir)
    if resume == "latest":
        return found[-1] if found else None
    if resume is None:
        if found or (out_dir / STUDENT_INFO).exists():
            raise InputError(
                f"{out_dir}: holds a run already and resume_from_checkpoint is null, wanted an empty folder"
            )
        return None
    for path in (Path(resume), out_dir / resume):
        if (path / _STATE).is_file():
            return path
    raise InputError(f"resume_from_checkpoint: got {resume}, wanted latest, null or a checkpoint folder")


def save_checkpoint(
    out_dir: Path, state: TrainingState, info: Mapping[str, Any], limit: int | None, main: bool = True
) -> Path:
    """Writes `out_dir`/checkpoint-{step} and then deletes the oldest above `limit`.

    All processes of a sharded student call this, to give their parts; the `main` one alone writes.

    Raises:
        BitsFusionError: it could not be written; the older ones are still there.
    """
    path = out_dir / f"checkpoint-{state.step}"
    if not main:
        for tensors in _parts(state).values():
            dict(gathered(tensors, keep=False))
        return path
    with atomic_folder(path) as folder:
        for name, tensors in _parts(state).items():
            _save(tensors, folder / name)
        write_json(folder / STUDENT_INFO, {**info, "step": state.step})
        rest = {"schema_version": SCHEMA_VERSION, "step": state.step, "seconds": state.seconds}
        window = {"sums": state.window.sums, "counts": state.window.counts}
        scaler = state.scaler.state_dict() if state.scaler else None
        write_json(folder / _STATE, {**rest, "window": window, "grad_scaler": scaler})
    for old in checkpoints(out_dir)[: -limit if limit else 0]:
        if old != path:
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))
    return path


def _parts(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by file."""
    moments = {
        f"{key}:{name}": torch.tensor(value) if isinstance(value, int) else _unshared(key, value)
        for name, parameter in _optimized(state).items()
        for key, value in state.optimizer.state[parameter].items()
    }
    averages = {_AVERAGES: state.ema.state()} if state.ema else {}
    return {STUDENT_WEIGHTS: state.student.state_dict(), **averages, _MOMENTS: moments}


def _unshared(key: str, value: Tensor) -> Tensor:
    """bitsandbytes' tables are the same for all parameters; a file has each tensor once."""
    return value.clone() if key.startswith("qmap") else value


def _optimized(state: TrainingState) -> dict[str, Tensor]:
    """Parameters by name, in the optimizer's order."""
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    return dict(zip(state.names, parameters, strict=True))


def load_checkpoint(path: Path, state: TrainingState, info: Mapping[str, Any]) -> None:
    """Puts a checkpoint into `state`, which belongs to the same run.

    Raises:
        InputError: it belongs to another run, or a file is missing or does not fit the model.
    """
    check_same_run(path, info)
    rest = read_json(path / _STATE)
    _load_into(state.student, _load(path / STUDENT_WEIGHTS), path)
    if state.ema:
        state.ema.load(_load(path / _AVERAGES))
    named = _optimized(state)
    for key, value in _load(path / _MOMENTS).items():
        kind, _, name = key.partition(":")
        parameter = named[name]
        # bitsandbytes counts steps in an int, torch in a tensor.
        own = int(value) if kind == "step" and state.counts_in_int else shard_of(value, parameter).to(parameter.device)
        state.optimizer.state[parameter][kind] = own
    if state.scaler:
        state.scaler.load_state_dict(rest["grad_scaler"])
    state.step, state.seconds, state.window = rest["step"], rest["seconds"], Window(**rest["window"])


def remove_leftovers(out_dir: Path) -> None:
    """Deletes what a killed run left half written."""
    for pattern in (".checkpoint-*", f".{STUDENT_WEIGHTS}.*", f".{STUDENT_INFO}.*"):
        for path in out_dir.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_student(folder: Path, student: nn.Module, info: Mapping[str, Any], main: bool = True) -> None:
    """Writes a finished stage's weights and, last, the student.json that marks it as finished.

    All processes of a sharded student call this; the `main` one alone writes.
    """
    if not main:
        dict(gathered(student.state_dict(), keep=False))
        return
    with atomic_path(folder / STUDENT_WEIGHTS) as temporary:
        _save(student.state_dict(), temporary)
    write_json(folder / STUDENT_INFO, dict(info))


def load_student(folder: Path, model: ModelMixin | None = None) -> ModelMixin:
    """The fake-quantized denoiser of a finished stage or of a checkpoint (its averages, where it kept them).

    Args:
        folder: a stage's output folder or a checkpoint-{step} in it.
        model: a full-precision model of the same architecture, changed in place; built from student.json if None.

    Returns:
        The model in eval mode on the CPU (or where `model` is).

    Raises:
        InputError: no such folder, or weights that do not fit the architecture.
    """
    folder = Path(folder)
    info = _read_info(folder)
    tensors = _load(folder / STUDENT_WEIGHTS)
    if (folder / _AVERAGES).exists():  # of what trained
        tensors |= _load(folder / _AVERAGES)
    if model is None:
        model = denoiser_called(info["model"]).build(info["model"])
        assert isinstance(model, ModelMixin)
    missing = [name for name in info["bits"] if f"{name}.scale" not in tensors]
    if missing:
        raise InputError(f"{folder}: no scale of {missing[0]}")
    fake_quantize_model(model, info["bits"], scales={name: tensors[f"{name}.scale"] for name in info["bits"]})
    _load_into(model, tensors, folder, assign=model.device.type == "meta")
    model.eval()
    return model


def load_finished(folder: Path, student: nn.Module) -> None:
    """Loads a finished stage's weights into an already fake-quantized student."""
    _load_into(student, _load(folder / STUDENT_WEIGHTS), folder)


def _load_into(model: nn.Module, tensors: Mapping[str, Tensor], where: Path, assign: bool = False) -> None:
    try:
        if is_sharded(model):
            load_into(model, tensors)
        else:
            model.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        raise InputError(f"{where}: the weights do not fit the model: {' '.join(str(error).split())[:300]}") from None


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: wanted a safetensors file, got {error}") from None


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in gathered(tensors, keep=True)}, path)
    except SafetensorError as error:
        raise BitsFusionError(f"{path}: could not be written ({error})") from error
