"""Which commands there are, where each is defined and what the help says of it, without importing any of them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from bitsfusion.cli.interruption import Interrupted
from bitsfusion.errors import InputError

GROUP = "bitsfusion.commands"
"""Entry points of other packages: the name of a command and the module with the function of that name."""

QUANTIZE, SERVE, MEASURE, SHARE = "Quantize", "Serve", "Measure", "Share"
LABORATORY, PLUG_INS = "Laboratory", "Plug-ins"


@dataclass(frozen=True)
class Place:
    """Where a command is found.

    Fields:
        module: the module with the function of the command's name.
        panel: the heading it stands under in the help.
    """

    module: str
    panel: str


_OWN = {
    "demo": Place("bitsfusion.cli.run", QUANTIZE),
    "run": Place("bitsfusion.cli.run", QUANTIZE),
    "plan": Place("bitsfusion.cli.planning", QUANTIZE),
    "analyze": Place("bitsfusion.cli.analysis", QUANTIZE),
    "assign": Place("bitsfusion.cli.analysis", QUANTIZE),
    "init": Place("bitsfusion.cli.steps", QUANTIZE),
    "train": Place("bitsfusion.cli.training", QUANTIZE),
    "pack": Place("bitsfusion.cli.steps", QUANTIZE),
    "generate": Place("bitsfusion.cli.generate", SERVE),
    "inspect": Place("bitsfusion.cli.artifact", SERVE),
    "verify": Place("bitsfusion.cli.artifact", SERVE),
    "evaluate": Place("bitsfusion.cli.evaluate", MEASURE),
    "timesteps": Place("bitsfusion.cli.training", MEASURE),
    "vote": Place("bitsfusion.cli.vote", MEASURE),
    "export": Place("bitsfusion.cli.export", SHARE),
    "card": Place("bitsfusion.cli.card", SHARE),
}


@cache
def places() -> dict[str, Place]:
    """Every command by name: the product's own in the order of the help, then those of other packages."""
    found = dict(_OWN)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        panel = LABORATORY if entry.value.startswith("bitsfusion_lab.") else PLUG_INS
        found.setdefault(entry.name, Place(entry.value, panel))
    return found


class LazyGroup(TyperGroup):
    """Lists commands by what their source says and imports the module of the one that is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, place in places().items():
            self.add_command(TyperCommand(name, help=summary(name, place.module), rich_help_panel=place.panel))

    def list_commands(self, ctx: Any) -> list[str]:
        """In the table's order, by which the help groups them."""
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Replaces the listed command that is called by the real one."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else load_command(name), rest

    def invoke(self, ctx: Any) -> Any:
        """Ctrl-C ends a command with one line; those that can be resumed say so themselves."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None


def load_command(name: str) -> TyperCommand:
    """Imports the module of a command; the libraries' own progress bars are off from here on.

    Raises:
        InputError: a library that the command needs is not installed.
    """
    place = places()[name]
    try:
        function = getattr(importlib.import_module(place.module), _function(name))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "bitsfusion", "bitsfusion_lab"):
            raise
        raise InputError(f"{name}: {error.name} is not installed, wanted pip install 'bitsfusion[cli]'") from None
    for library in ("diffusers", "transformers"):
        if library in sys.modules:
            importlib.import_module(f"{library}.utils.logging").disable_progress_bar()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name)(function)
    command: TyperCommand = typer.main.get_command(app)  # type: ignore[assignment]
    return command


def _function(command: str) -> str:
    return command.replace("-", "_")


def summary(name: str, module: str) -> str:
    """The first paragraph of a command's docstring, read from the module's source; empty where there is no source."""
    spec = importlib.util.find_spec(module)
    loader: Any = None if spec is None else spec.loader
    source = loader.get_source(module) if hasattr(loader, "get_source") else None
    for node in () if source is None else ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == _function(name):
            return (ast.get_docstring(node) or "").split("\n\n")[0]
    return ""
