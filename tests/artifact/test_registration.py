"""`import bitsfusion` registers with diffusers, before or after it, and loads neither torch nor diffusers."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = "from diffusers.quantizers import auto; assert 'bitsfusion' in auto.AUTO_QUANTIZER_MAPPING"


@pytest.mark.parametrize(
    "code",
    [
        "import bitsfusion, sys; assert not {'torch', 'diffusers'} & set(sys.modules)",
        f"import bitsfusion; {CHECK}",
        f"import diffusers.quantizers.auto; import bitsfusion; {CHECK}",
        f"import bitsfusion; from diffusers import UNet2DConditionModel; {CHECK}",
    ],
    ids=["light", "before", "after", "through a model"],
)
def test_registration(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
