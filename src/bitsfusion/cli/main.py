"""`bitsfusion`: the entry point, and how errors end a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import bitsfusion
from bitsfusion.cli.commands import LazyGroup
from bitsfusion.cli.interruption import Interrupted
from bitsfusion.errors import BitsFusionError, InputError


def build_app() -> typer.Typer:
    """The command line; no command's module is imported before it is called."""
    app = typer.Typer(
        name="bitsfusion",
        cls=LazyGroup,
        help="Mixed-precision weight quantization of diffusion models below two bits a weight.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bitsfusion {bitsfusion.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a user's mistake is one line and exit code 2, a failed check exit code 1."""
    _settle_environment()
    try:
        build_app()(args=arguments, prog_name="bitsfusion")
    except InputError as error:
        _fail(str(error), 2)
    except BitsFusionError as error:
        _fail(str(error), 1)
    except PermissionError as error:
        _fail(f"{error.filename}: got {error.strerror}, wanted a file or folder that this user may read and write", 2)
    except Interrupted as error:
        _fail(str(error), 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> None:
    print(f"bitsfusion: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _settle_environment() -> None:
    """Libraries keep to errors unless the user has said otherwise; they read this when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


if __name__ == "__main__":
    main()
