"""A process that packs a tiny model again and again, in children that may be killed. Run by test_crash.py.

    python -m tests.artifact.packing_process

Reads one JSON object a line: {"target", "model": 0 or 1, "kill_after": seconds, "kill_at": event, "two_steps": bool,
"file_bytes": limit of a file's size, "pipeline": bool}, all but the first two optional. Forks a child that packs the
model there, and writes one line: {"killed": bool, "error": its message or null, "seconds"}.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

import bitsfusion.io.atomic
from bitsfusion.artifact.writer import write_model, write_pipeline
from bitsfusion.diffusion.samplers import Coverage
from bitsfusion.errors import BitsFusionError

from ..tiny.pipeline import build_pipeline
from ..tiny.unet import build_unet
from ..tiny.vae import build_vae
from .conftest import quantized

COVERAGE = Coverage((981, 1))
SAMPLERS = (("pndm", 4),)


def models(pipeline: StableDiffusionPipeline) -> list[UNet2DConditionModel]:
    """Two that differ in every layer."""
    made = []
    for factor in (1.0, 1.5):
        with torch.no_grad():
            for parameter in pipeline.unet.parameters():
                parameter.mul_(factor)
        made.append(quantized(pipeline.unet))
    return made


def die_at(event: int, folder: Path) -> None:
    """Kills this process at its nth call that opens, makes, renames or removes something in `folder`."""
    count = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if any(
            str(folder) in str(argument) for argument in arguments if isinstance(argument, (str, bytes, os.PathLike))
        ):
            count += 1
            if count > event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(job: dict[str, Any], pipeline: StableDiffusionPipeline, unet: UNet2DConditionModel) -> str | None:
    target = Path(job["target"])
    if job.get("two_steps"):
        bitsfusion.io.atomic._exchange = lambda one, other: False
    if "file_bytes" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"], resource.RLIM_INFINITY))
    if "kill_at" in job:
        die_at(job["kill_at"], target.parent)
    try:
        if job.get("pipeline"):
            write_pipeline(pipeline, unet, target, SAMPLERS)
        else:
            write_model(unet, target, COVERAGE)
    except BitsFusionError as error:
        return str(error)
    return None


def run(job: dict[str, Any], pipeline: StableDiffusionPipeline, unet: UNet2DConditionModel) -> dict[str, Any]:
    reader, writer = os.pipe()
    start = time.perf_counter()
    process = os.fork()
    if process == 0:
        os.close(reader)
        try:
            os.write(writer, json.dumps(child(job, pipeline, unet)).encode())
        except BaseException as error:
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}").encode())
        os._exit(0)
    os.close(writer)
    if "kill_after" in job:
        time.sleep(job["kill_after"])
        os.kill(process, signal.SIGKILL)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(process, 0)
    seconds = time.perf_counter() - start
    return {"killed": os.WIFSIGNALED(status), "error": json.loads(text) if text else None, "seconds": seconds}


def main() -> None:
    pipeline = build_pipeline(build_unet(block_out_channels=(8, 16)), build_vae())
    both = models(pipeline)
    for line in sys.stdin:
        job = json.loads(line)
        sys.stdout.write(json.dumps(run(job, pipeline, both[job["model"]])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
