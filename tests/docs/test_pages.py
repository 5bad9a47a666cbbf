"""README and the pages of docs/: links and anchors exist, prose wraps, commands are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bitsfusion.cli.commands import load_command, places

from .markdown import ROOT, SITE_ONLY, anchors, code_blocks, links, pages, prose

WIDTH = 100
README_WORDS = 700
NOT_WRAPPED = {"CHANGELOG.md", "docs/diffusers.md", "docs/evaluation.md", "docs/format.md"}
"""Pages that wait for a time when nobody edits them."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_resolve(page):
    text = page.read_text(encoding="utf-8")
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        made_for_the_site = ROOT / "docs" in page.parents and str(target).removeprefix(f"{ROOT}/docs/") in SITE_ONLY
        assert target.exists() or made_for_the_site, f"{link}: there is no {path}"
        if anchor and target.suffix == ".md" and target.exists():
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}: {target.name} has no such heading"


@pytest.mark.parametrize("page", [page for page in pages() if name_of(page) not in NOT_WRAPPED], ids=name_of)
def test_prose_wraps(page):
    for number, line in enumerate(prose(page.read_text(encoding="utf-8")).splitlines(), 1):
        unbreakable = line.startswith(("|", "#", "![")) or len(line.split()) <= 2
        assert len(line) <= WIDTH or unbreakable, f"line {number} of the prose has {len(line)} columns: {line[:60]}..."


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_commands_and_their_options_exist(page):
    text = page.read_text(encoding="utf-8")
    for source in [*code_blocks(text), *re.findall(r"`([^`\n]+)`", prose(text))]:
        for name, rest in re.findall(r"^(?:\S*/)?bitsfusion ([a-z-]+)(?: (.*))?$", _joined(source), re.MULTILINE):
            assert name in places(), f"bitsfusion {name}: there is no such command"
            asked = set(re.findall(r"(?<=\s)--[a-z0-9-]+", f" {rest.split(' #')[0]}"))
            there = {option for parameter in load_command(name).params for option in parameter.opts}
            assert asked <= there | {"--help"}, f"bitsfusion {name}: there is no {', '.join(asked - there)}"


def _joined(source: str) -> str:
    """Lines that end in a backslash and the next as one."""
    return re.sub(r"\\\n\s*", "", source)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


def test_what_is_seen_here_is_what_the_readers_see():
    """The reading of Markdown itself, against a page with one of each."""
    text = "# A `b`: c, d (e)\n\n[x [y]](a.md#b) ![z](c.png) `[no](no.md)`\n\n```\n[no](no.md)\nbitsfusion init\n```\n"
    assert links(text) == ["a.md#b", "c.png"]
    assert anchors(text) == {"a-b-c-d-e"}
    assert code_blocks(text) == ["[no](no.md)\nbitsfusion init\n"]
