"""The seam holds: what is particular to a family, and the call of a denoiser, stand in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bitsfusion

SOURCE = Path(bitsfusion.__file__).parent
BLOCKS = re.compile(r"\b(down_blocks|up_blocks|mid_block|ResnetBlock2D|BasicTransformerBlock)\b")
CALL = re.compile(
    r"(?<![.\w])(self\.)?(unet|denoiser|student|teacher|transformer)\(|(?<![.\w])model\(\*|encoder_hidden_states="
    r"|\.predict\(model, "
)
FILES = sorted(path for path in SOURCE.rglob("*.py"))


def code(path: Path) -> str:
    """Without docstrings and comments."""
    text = re.sub(r'"""(.|\n)*?"""', "", path.read_text(encoding="utf-8"))
    return re.sub(r"#.*", "", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_blocks_are_named_and_denoisers_called_in_one_place(path):
    place = path.relative_to(SOURCE).parts[0]
    if place != "architectures":
        assert not BLOCKS.search(code(path))
    if place not in ("architectures", "diffusion"):
        found = CALL.search(re.sub(r"def \w+\(", "", code(path)))
        assert not found, found.group()
