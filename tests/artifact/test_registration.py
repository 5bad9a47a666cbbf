"""`import bitsfusion` registers with diffusers and transformers, before or after them, and itself loads neither."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = "import bitsfusion, sys; assert not {'torch', 'diffusers', 'transformers', 'pydantic'} & set(sys.modules)"
LIBRARIES = ("diffusers", "transformers")
CHECK = "; ".join(
    f"from {name}.quantizers import auto; assert 'bitsfusion' in auto.AUTO_QUANTIZER_MAPPING, '{name}'"
    for name in LIBRARIES
)


@pytest.mark.parametrize(
    "code",
    [
        f"{LIGHT}; from transformers import CLIPTextModel; from diffusers import UNet2DConditionModel; {CHECK}",
        f"import diffusers.quantizers.auto, transformers.quantizers.auto; {LIGHT[:17]}; {CHECK}",
        f"import bitsfusion.artifact.diffusers_plugin, bitsfusion.artifact.transformers_plugin; {CHECK}",
        f"from bitsfusion import BitsFusionConfig; {CHECK}",
    ],
    ids=["before", "after", "plugins first", "config first"],
)
def test_registration(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
