"""The process that one method lives in: commands come as JSON lines on stdin, answers go as JSON lines to stdout."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bitsfusion.diffusion.denoise import denoise
from bitsfusion_lab.bench.bench_file import Dtype
from bitsfusion_lab.bench.inputs import ForwardInputs, forward_inputs
from bitsfusion_lab.bench.layers import measure_layers, model_bytes
from bitsfusion_lab.bench.methods import method_called
from bitsfusion_lab.bench.methods.base import model_class


class Worker:
    """One method in one process; each public method is a command."""

    def __init__(self, method: str, dtype: Dtype, threads: int) -> None:
        torch.set_num_threads(threads)
        self._method = method_called(method)
        self._dtype = dtype.torch
        self._model: Any = nn.Module()
        self._inputs: ForwardInputs | None = None
        self._method.warm_up()

    def prepare(self, source: str, out: str) -> dict[str, Any]:
        """Quantizes and saves."""
        started = time.perf_counter()
        with torch.no_grad():
            self._method.prepare(Path(source), Path(out), self._dtype)
        return {"prepare_seconds": time.perf_counter() - started, "prepare_peak_rss": peak_rss()}

    def load(self, folder: str, step: int, batch: int, latent: int) -> dict[str, Any]:
        """Loads the model; the files have been read before, so that the page cache is warm."""
        for path in Path(folder).rglob("*"):
            if path.is_file():
                with open(path, "rb", buffering=0) as file:
                    while file.read(1 << 24):
                        pass
        model_class(Path(folder))  # diffusers imports its classes when they are asked for
        before = peak_rss()
        started = time.perf_counter()
        self._model = self._method.load(Path(folder), self._dtype)
        seconds = time.perf_counter() - started
        config = {**self._model.config, "_class_name": type(self._model).__name__}
        made = forward_inputs(config, step=step, batch=batch, latent=latent)
        conditioning = made.conditioning.to("cpu", self._dtype)
        self._inputs = ForwardInputs(made.sample.to(self._dtype), made.timestep, conditioning)
        return {"load_seconds": seconds, "rss_before_load": before}

    def forward(self, output: str | None = None) -> dict[str, Any]:
        """One forward; the output goes to a safetensors file where a path is given."""
        asked = self._inputs
        assert asked is not None, "load comes first"
        with torch.no_grad():
            started = time.perf_counter()
            result = denoise(self._model, asked.sample, asked.timestep, asked.conditioning)
            seconds = time.perf_counter() - started
        answer = {"seconds": seconds, "peak_rss": peak_rss()}
        if output is not None:
            save_file({"output": result.float().contiguous()}, output)
        return answer

    def layers(self, dense: str) -> dict[str, Any]:
        """What the layers hold, see `measure_layers`; `dense` is the float32 safetensors file."""
        layers = measure_layers(self._model, self._method, Path(dense))
        return {
            "bytes_in_memory": model_bytes(self._model),
            "layers": {name: asdict(layer) for name, layer in layers.items()},
        }


def peak_rss() -> int:
    """The most bytes of memory this process has held at once.

    Linux carries `ru_maxrss` over from the parent process, so the kernel's own mark for this program comes first.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def main() -> None:
    """Serves commands until stdin ends. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(work: Callable[[], dict[str, Any]]) -> None:
        try:
            reply = work()
        except Exception as error:
            lines = str(error).strip().splitlines()
            reply = {"error": f"{type(error).__name__}: {lines[0] if lines else 'no message'}"}
        answers.write(json.dumps(reply) + "\n")

    worker: Worker | None = None

    def start() -> dict[str, Any]:
        nonlocal worker
        worker = Worker(sys.argv[1], Dtype(sys.argv[2]), int(sys.argv[3]))
        return {}

    answer(start)
    for line in sys.stdin:
        request = json.loads(line)
        answer(lambda request=request: getattr(worker, request.pop("do"))(**request))  # type: ignore[misc]


if __name__ == "__main__":
    main()
