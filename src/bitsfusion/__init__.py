"""BitsFusion: mixed-precision weight quantization of diffusion models below two bits."""

from typing import Any

from bitsfusion.artifact.registration import register_lazily as _register

__version__ = "0.1.0"

_register()


def __getattr__(name: str) -> Any:
    """`BitsFusionConfig`, imported when asked for: it needs torch and diffusers."""
    if name == "BitsFusionConfig":
        from bitsfusion.artifact.diffusers_plugin import BitsFusionConfig

        return BitsFusionConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
