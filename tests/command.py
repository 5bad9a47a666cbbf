"""The command line in this process, as the tests call it."""

from __future__ import annotations

import pytest

from bitsfusion.cli.main import main


def run(*arguments: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """The one line on stderr of a command that fails."""
    ended = run(*arguments)
    error = capsys.readouterr().err
    assert ended == code, error
    (line,) = error.strip().splitlines()
    return str(line)
