"""`import bitsfusion` registers with diffusers, before or after it, and itself loads neither torch nor diffusers."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = "import bitsfusion, sys; assert not {'torch', 'diffusers', 'pydantic'} & set(sys.modules)"
CHECK = "from diffusers.quantizers import auto; assert 'bitsfusion' in auto.AUTO_QUANTIZER_MAPPING"


@pytest.mark.parametrize(
    "code",
    [
        f"{LIGHT}; from diffusers import UNet2DConditionModel; {CHECK}",
        f"import diffusers.quantizers.auto; {LIGHT[:17]}; {CHECK}",
    ],
    ids=["before", "after"],
)
def test_registration(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
