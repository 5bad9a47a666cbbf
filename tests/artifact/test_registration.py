"""`import bitsfusion` makes diffusers know the method, whichever is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = "from diffusers.quantizers import auto; assert 'bitsfusion' in auto.AUTO_QUANTIZER_MAPPING"


@pytest.mark.parametrize("code", [f"import bitsfusion; {CHECK}", f"import diffusers, bitsfusion; {CHECK}"])
def test_registration(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
