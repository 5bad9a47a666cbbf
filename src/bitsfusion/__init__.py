"""BitsFusion: mixed-precision weight quantization of diffusion models below two bits."""

from typing import TYPE_CHECKING

from bitsfusion.artifact.registration import register_lazily as _register

if TYPE_CHECKING:
    from bitsfusion.api import (
        analyze,
        assign,
        evaluate,
        export,
        generate,
        init_pipeline,
        inspect,
        pack,
        plan,
        quantize,
        train,
        verify,
    )
    from bitsfusion.artifact.diffusers_plugin import BitsFusionConfig

__version__ = "0.1.0"

__all__ = [
    "BitsFusionConfig",
    "__version__",
    "analyze",
    "assign",
    "evaluate",
    "export",
    "generate",
    "init_pipeline",
    "inspect",
    "pack",
    "plan",
    "quantize",
    "train",
    "verify",
]

_register()


def __getattr__(name: str) -> object:
    """The public names, imported when asked for: they need torch and diffusers."""
    if name == "BitsFusionConfig":
        from bitsfusion.artifact.diffusers_plugin import BitsFusionConfig

        return BitsFusionConfig
    if name in __all__:
        from bitsfusion import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
