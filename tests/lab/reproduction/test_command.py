from __future__ import annotations

import pytest

from ...command import refusal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", ""], "seeds: got '', wanted numbers from 0"),
        (["--seeds", "0,x"], "seeds: got '0,x', wanted numbers"),
        (["--seeds", "-1"], "seeds: got '-1', wanted numbers from 0"),
        (["--seeds", "99999999999999999999"], "wanted numbers from 0 to 9223372036854775807"),
        (["--guidance", "nan"], "guidance: got 'nan', wanted numbers from 0 to 1000"),
        (["--guidance", "7.5,-3"], "guidance: got '7.5,-3', wanted numbers from 0 to 1000"),
        (["--guidance", "inf"], "guidance: got 'inf'"),
        (["--table", "9"], "table: got '9', wanted 3"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_made(arguments, message, tmp_path, capsys):
    assert message in refusal(capsys, "reproduce", *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
