"""Accelerate's part of training: precision, trackers, and the processes of a launch, on the config's device."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from bitsfusion.devices import resolve
from bitsfusion.errors import InputError
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.ranks import Ranks


def build_accelerator(config: TrainingConfig, out_dir: Path) -> Accelerator:
    """The Accelerator of one stage.

    Raises:
        InputError: a device, precision or tracker that is not here, or a launch of a kind that training does not serve.
    """
    device = Ranks(resolve(config.device)).device
    AcceleratorState._reset_state()  # of the stage before, whose precision may have been another
    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # gradients are held once
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            cpu=device.type == "cpu",
            log_with=config.report_to,
            project_dir=out_dir,
            kwargs_handlers=[buckets],
        )
    except ValueError as error:
        raise InputError(f"mixed_precision: got {config.mixed_precision}: {error}") from None
    if config.report_to and not accelerator.log_with:
        raise InputError(f"report_to: got {config.report_to}, wanted a tracker whose package is installed")
    kinds = DistributedType
    if accelerator.distributed_type not in (kinds.NO, kinds.MULTI_CPU, kinds.MULTI_GPU, kinds.FSDP):
        raise InputError(f"accelerate: got {accelerator.distributed_type.value}, wanted one process, DDP or FSDP")
    if config.shard and accelerator.num_processes == 1:
        raise InputError(
            "shard: got one process, wanted several (accelerate launch, torchrun), or training.shard=false"
        )
    if accelerator.distributed_type == kinds.FSDP and config.mixed_precision == "fp16":
        raise InputError("mixed_precision: got fp16 with FSDP, wanted bf16 or no")
    accelerator.gradient_accumulation_steps = 1  # the loop divides by its own, whatever `accelerate launch` was told
    return accelerator
