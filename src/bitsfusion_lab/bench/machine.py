"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bitsfusion.kernels import available
from bitsfusion_lab.bench.methods.base import installed_version


def machine_facts(threads: int) -> dict[str, Any]:
    """Processor, cores, threads used, memory in bytes, what unpacks, system, and versions."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": physical_memory(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernel": asdict(available()["cpu"]),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in ("bitsfusion", "torch", "diffusers", "safetensors")},
    }


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
