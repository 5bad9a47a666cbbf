"""What pyproject.toml cannot say: on Windows the kernels are compiled by MinGW's g++, since MSVC does not read them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# Win64 aligns the stack to 16 bytes alone, so that aligned moves of AVX registers to it would fault.
WINDOWS = ("-shared", "-static", "-s", "-Wa,-muse-unaligned-vector-move")


def mingw(extension: Extension, out: str, compiler: str = "g++") -> list[str]:
    """The command that makes a DLL of the extension's sources, all that it needs inside."""
    arguments = [argument for argument in extension.extra_compile_args if argument != "-pthread"]
    return [compiler, *arguments, *WINDOWS, "-o", out, *extension.sources]


class BuildKernels(build_ext):
    """On Windows, g++ in the place of the compiler of Python itself."""

    def build_extension(self, ext: Extension) -> None:
        if sys.platform != "win32":
            super().build_extension(ext)
            return
        out = self.get_ext_fullpath(ext.name)
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(mingw(ext, out), check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(str(error)) from error


setup(cmdclass={"build_ext": BuildKernels})
