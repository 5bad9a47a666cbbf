"""BitsFusion: mixed-precision weight quantization of diffusion models below two bits."""

from bitsfusion.artifact.registration import register_with_diffusers as _register

_register()
