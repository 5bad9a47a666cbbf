"""Packs tiny models in forks of this process that may be killed."""

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
from diffusers import UNet2DConditionModel

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


class Packer:
    """A tiny pipeline, and two UNets for it that differ in every layer."""

    def __init__(self) -> None:
        self.pipeline = build_pipeline(build_unet(block_out_channels=(8, 16)), build_vae())
        self.unets: list[UNet2DConditionModel] = []
        for factor in (1.0, 1.5):
            with torch.no_grad():
                for parameter in self.pipeline.unet.parameters():
                    parameter.mul_(factor)
            self.unets.append(quantized(self.pipeline.unet))

    def __call__(self, target: Path, model: int, *, kill_after: float | None = None, **job: Any) -> dict[str, Any]:
        """Packs UNet 0 or 1 into `target` in a child: {"killed": bool, "error": its message or None, "seconds"}.

        Args:
            kill_after: seconds.
            job: "kill_at" (an event), "two_steps" (bool), "file_bytes" (limit of a file's size), "pipeline" (bool).
        """
        reader, writer = os.pipe()
        start = time.perf_counter()
        process = os.fork()
        if process == 0:
            os.close(reader)
            try:
                answer = self._child(target, self.unets[model], job)
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
        os.close(writer)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(process, signal.SIGKILL)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        _, status = os.waitpid(process, 0)
        seconds = time.perf_counter() - start
        return {"killed": os.WIFSIGNALED(status), "error": json.loads(text) if text else None, "seconds": seconds}

    def _child(self, target: Path, unet: UNet2DConditionModel, job: dict[str, Any]) -> str | None:
        if job.get("two_steps"):
            bitsfusion.io.atomic._exchange = lambda one, other: False
        if "file_bytes" in job:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"], resource.RLIM_INFINITY))
        if "kill_at" in job:
            _die_at(job["kill_at"], target.parent)
        try:
            if job.get("pipeline"):
                write_pipeline(self.pipeline, unet, target, SAMPLERS)
            else:
                write_model(unet, target, COVERAGE)
        except BitsFusionError as error:
            return str(error)
        return None


def _die_at(event: int, folder: Path) -> None:
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
