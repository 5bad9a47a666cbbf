from __future__ import annotations

import pytest

from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.sensitivity.correlation import correlate_bits, correlate_tables
from bitsfusion.sensitivity.table import SensitivityRow, SensitivityTable, read_table, write_table


def table_of(errors: dict[str, tuple[float, float, float]], psnr_sign: int = -1) -> SensitivityTable:
    return SensitivityTable(
        model="test",
        source_sha256="0" * 64,
        method="paper",
        settings={"seed": 0},
        layers=dict.fromkeys(errors, 10),
        removed={},
        first_last={"conv_in": 4},
        feature_values=0,
        rows=[
            SensitivityRow(layer=name, bits=b + 1, mse=error, psnr=psnr_sign * error, seconds=0.5)
            for name, row in errors.items()
            for b, error in enumerate(row)
        ],
    )


TABLE = table_of({"a": (4, 2, 1), "b": (9, 3, 2), "c": (16, 4, 8), "d": (25, 5, 4)})


def test_round_trip(tmp_path):
    write_table(tmp_path / "s.json", TABLE)
    assert read_table(tmp_path / "s.json") == TABLE
    assert read_table(tmp_path / "s.json").sha256() == TABLE.sha256()


def test_columns():
    assert TABLE.column("mse", 2) == {"a": 2, "b": 3, "c": 4, "d": 5}
    assert TABLE.column("clip_drop", 3) is None
    assert TABLE.row("c", 3).mse == 8
    with pytest.raises(InputError, match="no row of a at 4 bits"):
        TABLE.row("a", 4)
    with pytest.raises(InputError, match="at 4 bits of a, b, c, d"):
        TABLE.column("mse", 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["rows"].append(dict(t["rows"][0], layer="ghost")), "row of ghost, which is not among"),
        (lambda t: t["rows"].append(t["rows"][0]), "two rows of a at 1 bits"),
        (lambda t: t["rows"][0].update(mse=-1), "rows.0.mse.*got -1"),
        (lambda t: t["rows"][0].update(bits=9), "rows.0.bits.*got 9"),
        (lambda t: t["rows"][0].update(note="x"), "rows.0.note: Extra inputs"),
        (lambda t: t["layers"].update(a=0), "got 0 weights in a"),
        (lambda t: t.pop("method"), "method: Field required"),
    ],
    ids=["unknown layer", "twice", "negative", "bits", "unknown field", "no weights", "missing field"],
)
def test_refuses(tmp_path, change, message):
    write_table(tmp_path / "s.json", TABLE)
    content = read_json(tmp_path / "s.json")
    change(content)
    write_json(tmp_path / "s.json", content)
    with pytest.raises(InputError, match=message) as caught:
        read_table(tmp_path / "s.json")
    assert "s.json" in str(caught.value) and "\n" not in str(caught.value)


def test_correlation_by_hand():
    # (4, 9, 16, 25) against (2, 3, 4, 5): covariance 35, sums of squares 249 and 5.
    squares = correlate_bits(TABLE, 1, 2)
    assert squares.spearman == pytest.approx(1) and squares.pearson == pytest.approx(35 / (249 * 5) ** 0.5)
    assert squares.layers == 4
    assert correlate_bits(TABLE, 2, 3).spearman == pytest.approx(0.8)
    same = correlate_tables(TABLE, TABLE, "mse", "psnr")
    assert set(same) == {1, 2, 3}
    assert same[1].pearson == pytest.approx(-1)


def test_correlation_goes_by_name_not_by_order():
    turned = TABLE.model_copy(update={"layers": dict(reversed(TABLE.layers.items())), "rows": TABLE.rows[::-1]})
    assert correlate_tables(TABLE, turned)[3].pearson == pytest.approx(1)


def test_correlation_refuses_and_undefined():
    flat = table_of(dict.fromkeys("abcd", (1.0, 1.0, 1.0)))
    assert correlate_tables(TABLE, flat)[1].pearson is None
    with pytest.raises(InputError, match="different layers: d"):
        correlate_tables(TABLE, table_of({"a": (1, 1, 1), "b": (1, 1, 1), "c": (1, 1, 1)}))
    with pytest.raises(InputError, match="no lpips"):
        correlate_tables(TABLE, TABLE, "lpips")


def test_equal_measurements_have_one_name_however_long_they_took(tmp_path):
    rows = [SensitivityRow(layer="a", bits=bits, mse=1 / bits, seconds=bits) for bits in (1, 2, 3)]
    values = {"model": "m", "source_sha256": None, "method": "noise_error", "settings": {}, "layers": {"a": 4}}
    one = SensitivityTable(**values, removed={}, first_last={}, feature_values=0, rows=rows)
    slower = one.model_copy(update={"rows": [row.model_copy(update={"seconds": 99.0}) for row in rows]})
    other = one.model_copy(update={"rows": [row.model_copy(update={"mse": 5.0}) for row in rows]})
    assert one.sha256() == slower.sha256() != other.sha256()
