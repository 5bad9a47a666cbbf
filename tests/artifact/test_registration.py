"""`import bitsfusion` registers with diffusers and transformers, before or after them, and itself loads neither."""

from __future__ import annotations

import importlib
import subprocess
import sys

from .. import forked

LIGHT = "import bitsfusion, sys; assert not {'torch', 'diffusers', 'transformers', 'pydantic'} & set(sys.modules)"
LIBRARIES = ("diffusers", "transformers")
CHECK = "; ".join(
    f"from {name}.quantizers import auto; assert 'bitsfusion' in auto.AUTO_QUANTIZER_MAPPING, '{name}'"
    for name in LIBRARIES
)
BEFORE = (
    f"from transformers import CLIPTextModel; from diffusers import UNet2DConditionModel; {CHECK}",
    f"import bitsfusion.artifact.diffusers_plugin, bitsfusion.artifact.transformers_plugin; {CHECK}",
    f"from bitsfusion import BitsFusionConfig; {CHECK}",
)
PROGRAM = f"""
{LIGHT}
import os
import diffusers, torch, transformers
assert not [name for name in sys.modules if name.endswith("quantizers.auto")]
for code in {BEFORE!r}:
    if os.fork() == 0:
        exec(code)
        os._exit(0)
    assert os.wait()[1] == 0, code
"""


def test_before_them() -> None:
    """Whether models, the plug-ins or the config come first."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def register_after() -> None:
    registries = [importlib.import_module(f"{name}.quantizers.auto") for name in LIBRARIES]
    for registry in registries:
        for mapping in (registry.AUTO_QUANTIZER_MAPPING, registry.AUTO_QUANTIZATION_CONFIG_MAPPING):
            mapping.pop("bitsfusion", None)
    for name in ("", ".artifact.registration", ".artifact.diffusers_plugin", ".artifact.transformers_plugin"):
        sys.modules.pop(f"bitsfusion{name}", None)
    exec(f"import bitsfusion; {CHECK}")


def test_after_them() -> None:
    """In a process that has their registries, and forgets that it ever had this package."""
    assert forked.run(register_after) == 0
