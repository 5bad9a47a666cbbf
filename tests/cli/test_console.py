from __future__ import annotations

import pytest

from bitsfusion.cli.console import progress_bars
from bitsfusion.errors import InputError


def test_a_mistake_before_any_bar_leaves_stderr_to_its_one_line(capsys):
    with pytest.raises(InputError), progress_bars(quiet=False):
        raise InputError("wrong")
    assert capsys.readouterr() == ("", "")


def test_a_step_that_is_done_leaves_a_line(capsys):
    with progress_bars(quiet=False) as progress:
        progress.update("draw", 1, 2)
        progress.update("draw", 2, 2)
        progress.finish("draw", 3.0)
    found = capsys.readouterr()
    assert found.out == "" and "draw" in found.err and "3 s" in found.err
    with progress_bars(quiet=True) as progress:
        progress.update("draw", 1, 2)
    assert capsys.readouterr() == ("", "")
