"""`bitsfusion`: the entry point, and how errors end a command."""

from __future__ import annotations

import os
import sys

import typer

from bitsfusion.errors import ArtifactError, BitsFusionError, InputError

app = typer.Typer(
    name="bitsfusion",
    help="Mixed-precision weight quantization of diffusion models below two bits a weight.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the command line; a user's mistake is one line and exit code 2, a broken artifact exit code 1."""
    _settle_environment()
    from bitsfusion.cli import artifact, run, steps  # imports torch, so after the environment is settled

    for commands in (run, steps, artifact):
        commands.register(app)
    try:
        app()
    except InputError as error:
        _fail(error, 2)
    except (ArtifactError, BitsFusionError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail(BitsFusionError("interrupted; the same command goes on from here"), 130)


def _fail(error: Exception, code: int) -> None:
    print(f"bitsfusion: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


def _settle_environment() -> None:
    """Chatty libraries keep to warnings, unless the user has said otherwise."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


if __name__ == "__main__":
    main()
