"""What the tests of the documentation read from a Markdown file: prose, code blocks, links and anchors."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE_ONLY = {"changelog.md", "contributing.md", "reference/commands.md"}
"""Pages below docs/ that tools/site_pages.py makes."""

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """Every Markdown file of the repository's root and of docs/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def code_blocks(text: str) -> list[str]:
    """The contents of fenced blocks."""
    return [block.split("\n", 1)[1].removesuffix("```") for block in _FENCE.findall(text)]


def prose(text: str) -> str:
    """Everything but fenced blocks."""
    return _FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Targets of links and pictures."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(text)))


def anchors(text: str) -> set[str]:
    """What a heading is called in a link, as GitHub and mkdocs agree on it."""
    return {
        re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())
        for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    }
