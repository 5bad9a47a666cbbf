"""`bitsfusion`: the entry point, and how errors end a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from bitsfusion.errors import BitsFusionError, InputError


def build_app() -> typer.Typer:
    """All commands; imports torch and diffusers."""
    from bitsfusion.cli import artifact, run, steps

    app = typer.Typer(
        name="bitsfusion",
        help="Mixed-precision weight quantization of diffusion models below two bits a weight.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for commands in (run, steps, artifact):
        commands.register(app)
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
    """Chatty libraries keep to errors unless the user has said otherwise; before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


if __name__ == "__main__":
    main()
