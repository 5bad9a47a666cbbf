"""`bitsfusion`: the entry point, and how errors end a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

import typer

from bitsfusion.errors import BitsFusionError, InputError

COMMANDS = "bitsfusion.commands"
"""Entry points: modules of other packages that add commands by `register(app)`."""


def build_app() -> typer.Typer:
    """All commands; imports torch, diffusers and transformers, whose own progress bars are off from here on."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from bitsfusion.cli import artifact, card, evaluate, run, steps, training, vote

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    app = typer.Typer(
        name="bitsfusion",
        help="Mixed-precision weight quantization of diffusion models below two bits a weight.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for commands in (run, steps, training, artifact, evaluate, card, vote):
        commands.register(app)
    for entry in sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name):
        entry.load().register(app)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a user's mistake is one line and exit code 2, a failed check exit code 1."""
    _settle_environment()
    try:
        build_app()(args=arguments, prog_name="bitsfusion")
    except InputError as error:
        _fail(str(error), 2)
    except BitsFusionError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from here", 130)


def _fail(message: str, code: int) -> None:
    print(f"bitsfusion: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _settle_environment() -> None:
    """Libraries keep to errors unless the user has said otherwise; they read this when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


if __name__ == "__main__":
    main()
