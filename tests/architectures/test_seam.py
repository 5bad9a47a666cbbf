"""The seam holds: what is particular to a family, and the call of a denoiser, stand in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bitsfusion
import bitsfusion_lab
from bitsfusion.architectures.base import Architecture, Denoiser

PRODUCT, LABORATORY = (Path(package.__file__).parent for package in (bitsfusion, bitsfusion_lab))
BLOCKS = re.compile(r"\b(down_blocks|up_blocks|mid_block|ResnetBlock2D|BasicTransformerBlock|transformer_blocks)\b")
CALL = re.compile(
    r"(?<![.\w])(self\.)?(unet|denoiser|student|teacher|transformer)\(|(?<![.\w])model\(\*|encoder_hidden_states="
    r"|\.predict\(model, "
)
UNET_BY_NAME = re.compile(r"""["'/]unet["'/]|pipeline\.unet\b""")
NAMED_UNET = {
    "training/checkpoint.py": "reads student.json of version 1, which had a field of that name",
    "exporting/web/web.py": "graphs are made of Stable Diffusion alone, one a component",
    "bench/methods/gguf.py": "what the rival's format calls an architecture",
}
TRAINED_HERE = ("embedding",)
"""The laboratory's making of the embedded models, which are trained before there is anything to quantize."""


def files(package: Path, *others: str) -> list[Path]:
    found = [path for path in sorted(package.rglob("*.py")) if path.relative_to(package).parts[0] not in others]
    assert len(found) > 10
    return found


def code(path: Path) -> str:
    """Without docstrings, comments and names of functions that are defined."""
    text = re.sub(r'"""(.|\n)*?"""', "", path.read_text(encoding="utf-8"))
    return re.sub(r"def \w+\(", "", re.sub(r"#.*", "", text))


def test_blocks_are_named_in_one_place():
    for path in files(PRODUCT, "architectures"):
        found = BLOCKS.search(code(path))
        assert not found, f"{path}: {found.group()}"
    assert any(BLOCKS.search(code(path)) for path in (PRODUCT / "architectures").glob("*.py"))


def test_denoisers_are_called_in_one_place():
    callers = [*files(PRODUCT, "architectures", "diffusion"), *files(LABORATORY, *TRAINED_HERE)]
    for path in callers:
        found = CALL.search(code(path))
        assert not found, f"{path}: {found.group()}"
    assert CALL.search(code(PRODUCT / "diffusion" / "denoise.py"))


def test_the_denoiser_is_asked_for_and_not_called_unet():
    """It may be a transformer: a pipeline's folder says which component it is, and a loaded pipeline too."""
    named = set()
    for package, others in ((PRODUCT, ("architectures",)), (LABORATORY, TRAINED_HERE)):
        for path in files(package, *others):
            found, name = UNET_BY_NAME.search(code(path)), path.relative_to(package).as_posix()
            assert not found or name in NAMED_UNET, f"{path}: {found.group() if found else None}"
            named |= {name} if found else set()
    assert named == NAMED_UNET.keys()


@pytest.mark.parametrize("line", ['folder / "unet"', "pipeline.unet.config", 'f"{folder}/unet/config.json"'])
def test_a_unet_by_name_would_be_seen(line):
    assert UNET_BY_NAME.search(line)


@pytest.mark.parametrize(
    "call",
    ["noise = unet(z, t, c)", "self.teacher(noisy)", "model(*args)", "x(a, encoder_hidden_states=c)"],
)
def test_a_call_would_be_seen(call):
    assert CALL.search(call)


def test_the_page_on_families_names_what_there_is():
    page = (PRODUCT.parents[1] / "docs" / "how-to" / "add-a-family.md").read_text(encoding="utf-8")
    for section, kind in (("What every family says", Architecture), ("What a denoiser says besides", Denoiser)):
        table = page.split(f"## {section}")[1].split("\n## ")[0]
        rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
        named = {name for row in rows for name in re.findall(r"`(\w+)", row)}
        there = {name for name in dir(kind) if not name.startswith("_")} | set(kind.__dataclass_fields__)
        assert named and named <= there, named - there
    for place in re.findall(r"`((?:src|tests|docs)/[\w/.-]+)`", page):
        assert "FAMILY" in place or (PRODUCT.parents[1] / place).exists(), place
