"""BitsFusion: mixed-precision weight quantization of diffusion models below two bits."""

from bitsfusion.artifact import diffusers_plugin as _diffusers_plugin

_diffusers_plugin.register()
