"""A strict second device for tests on the CPU: built with a C++ compiler, and made torch's accelerator in a process.

It shows wrong placement and needless synchronisation. It shows nothing of autocast's kernels, NCCL or speed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

NAME = "fakegpu"
SOURCE = Path(__file__).with_name("fake.cpp")


def compiler() -> str | None:
    """The C++ compiler, where there is one."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")


def build(folder: Path) -> Path:
    """The shared library in `folder`, compiled once for this source and this torch: about 10 seconds.

    Raises:
        subprocess.CalledProcessError: the compiler refuses it; its message is in `stderr`.
    """
    from torch.utils.cpp_extension import include_paths, library_paths

    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = folder / f"{NAME}-{key}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not library.exists():
            made = library.with_suffix(".part")
            flags = ["-std=c++20", "-O1", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={_abi()}"]
            paths = [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
            linked = ["-lc10", "-ltorch_cpu", "-ltorch"]
            command = [compiler() or "c++", *flags, *paths, str(SOURCE), "-o", str(made), *linked]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(library)
    return library


def _abi() -> int:
    return int(torch._C._GLIBCXX_USE_CXX11_ABI)


@dataclass(frozen=True)
class Counts:
    """Copies from the device to the host (each waits for the device), copies to it, and operations."""

    to_host: int
    to_device: int
    operations: int

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            self.to_host - other.to_host, self.to_device - other.to_device, self.operations - other.operations
        )


class Accelerator:
    """The device of this process, for good: a backend cannot be taken back."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))
        self._functions = ctypes.CDLL(str(library))
        for name in ("fake_to_host", "fake_to_device", "fake_operations"):
            getattr(self._functions, name).restype = ctypes.c_int64
        torch.utils.rename_privateuse1_backend(NAME)
        self._functions.fake_init()
        torch._register_device_module(NAME, _module())
        torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
        self._library = self._layers()
        self.device = torch.device(NAME, 0)

    def counts(self) -> Counts:
        """Since the process began."""
        f = self._functions
        return Counts(f.fake_to_host(), f.fake_to_device(), f.fake_operations())

    def _layers(self) -> torch.library.Library:
        """Convolution and group norm have no fallback in torch: by way of the CPU, and strict too."""
        library = torch.library.Library("aten", "IMPL")
        for name, work in _LAYERS.items():
            library.impl(name, self._by_cpu(name, work), "PrivateUse1")
        return library

    def _by_cpu(self, name: str, work: Callable) -> Callable:
        def run(*arguments):
            kinds = {argument.device.type for argument in arguments if isinstance(argument, torch.Tensor)}
            if kinds != {NAME}:
                raise RuntimeError(f"FAKEGPU: Expected all tensors to be on the same device in {name}, got {kinds}")
            self._functions.fake_mute(1)
            try:
                made = work(*(a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments))
                if isinstance(made, torch.Tensor):
                    return made.to(NAME)
                return tuple(None if part is None else part.to(NAME) for part in made)
            finally:
                self._functions.fake_mute(-1)

        return run


def _convolution(*arguments):
    return torch.ops.aten.convolution(*arguments)


def _convolution_backward(grad, x, weight, stride, padding, dilation, transposed, output_padding, groups, mask):
    sizes = [weight.shape[0]]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, sizes, stride, padding, dilation, transposed, output_padding, groups, mask
    )


def _group_norm(x, *rest):
    return torch.ops.aten.native_group_norm(x.contiguous(), *rest)


def _group_norm_backward(grad, x, *rest):
    return torch.ops.aten.native_group_norm_backward(grad.contiguous(), x.contiguous(), *rest)


_LAYERS = {
    "convolution_overrideable": _convolution,
    "convolution_backward_overrideable": _convolution_backward,
    "native_group_norm": _group_norm,
    "native_group_norm_backward": _group_norm_backward,
}


def _module() -> types.ModuleType:
    """What torch expects of a backend's module, `torch.fakegpu`."""
    module = types.ModuleType(f"torch.{NAME}")
    constants = dict(is_available=True, device_count=1, current_device=0, _is_in_bad_fork=False, is_initialized=True)
    for name, value in constants.items():
        setattr(module, name, lambda value=value: value)
    for name in ("set_device", "manual_seed", "manual_seed_all", "synchronize", "empty_cache", "set_rng_state"):
        setattr(module, name, lambda *arguments: None)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.get_rng_state = lambda *arguments: torch.get_rng_state()
    sys.modules[module.__name__] = module
    return module
