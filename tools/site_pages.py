"""Pages of the documentation site that are made when it is built; mkdocs calls `on_files` (see mkdocs.yml).

`changelog.md` and `contributing.md` are the files of the repository's root, `reference/commands.md` is what the
command line says about itself.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from bitsfusion.cli.commands import load_command, places

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that no file in docs/ holds."""
    made = {
        "changelog.md": from_root("CHANGELOG.md"),
        "contributing.md": from_root("CONTRIBUTING.md"),
        "reference/commands.md": commands(),
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def from_root(name: str) -> str:
    """A page of the repository's root, with its links as docs/ sees them."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/", "](", text)


def commands() -> str:
    """Every command with its arguments and options, as Markdown, under the headings of the help."""
    by_panel: dict[str, list[str]] = {}
    for name, place in places().items():
        by_panel.setdefault(place.panel, []).append(name)
    sections = [
        "# Commands",
        "A mistake is one line on stderr and exit code 2; a broken folder or a failed check is exit code 1. "
        "A command that was interrupted continues when it is given again. `bitsfusion --install-completion` "
        "completes commands and options in your shell.",
    ]
    for panel, names in by_panel.items():
        sections.append(f"## {panel}")
        for name in names:
            command = load_command(name)
            usage = " ".join(command.collect_usage_pieces(command.make_context(name, [], resilient_parsing=True)))
            usage = f"```\nbitsfusion {name} {usage}\n```"
            sections += [f"### {name}", command.help or "", usage, parameters(command)]
    return "\n\n".join(section for section in sections if section) + "\n"


def parameters(command: Any) -> str:
    """The arguments and options of a command as a table."""
    lines = ["| | default | |", "|---|---|---|"]
    hints = get_type_hints(command.callback)
    for parameter in command.params:
        names = [(parameter.name or "").upper()]
        if parameter.param_type_name == "option":
            names = [*parameter.opts, *parameter.secondary_opts]
        default = getattr(parameter.default, "value", parameter.default)
        defaults = default if isinstance(default, (list, tuple)) else [default]
        shown = ", ".join(code(one) for one in defaults if not callable(one) and one not in (None, False))
        text = getattr(parameter, "help", None) or ""
        choices = values_of(hints.get(parameter.name))
        if choices:
            text = f"{text} One of {', '.join(map(code, choices))}."
        lines.append(f"| {', '.join(map(code, names))} | {shown} | {cell(text)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def values_of(hint: Any) -> list[str]:
    """The values of an enum, also of one that is optional or repeated."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [str(member.value) for member in hint]
    return [value for part in get_args(hint) for value in values_of(part)]


def code(value: object) -> str:
    """As Markdown's code."""
    return f"`{value}`"


def cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
