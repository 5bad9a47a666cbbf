"""The sensitivity file: for each layer and bit width, what quantizing that layer alone costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, model_validator

from bitsfusion.errors import InputError
from bitsfusion.io.atomic import remove_leftovers
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.schema import Checked, named, parse
from bitsfusion.io.texts import read_json, write_json

MEASURED_BITS = (1, 2, 3)
"""The bit widths measured (section 3.2)."""

Numel = dict[str, int]


class Candidate(NamedTuple):
    """A layer to quantize alone, and to how many bits: the unit of work."""

    layer: str
    bits: int


class SensitivityRow(Checked):
    """One layer quantized alone to one bit width."""

    model_config = ConfigDict(allow_inf_nan=False)

    layer: str
    bits: int = Field(ge=1, le=8)
    mse: float = Field(ge=0)
    """Mean squared error against the full-precision model: of its images in [0, 1], or of its predicted noise."""
    psnr: float | None = None
    """Between the images, in dB."""
    lpips: float | None = None
    clip_drop: float | None = None
    """CLIP score of the full-precision model's images less that of the quantized model's."""
    seconds: float = Field(ge=0)


class SensitivityTable(Checked):
    """What `bitsfusion analyze` writes; names are of the UNet's layers, numbers beside them their weights."""

    schema_version: Literal[1] = 1
    model: str
    source_sha256: str | None
    method: str
    settings: dict[str, Any]
    layers: Numel
    removed: Numel
    first_last: Numel
    feature_values: int = Field(ge=0)
    rows: list[SensitivityRow]

    @model_validator(mode="after")
    def _check_rows(self) -> SensitivityTable:
        seen: set[tuple[str, int]] = set()
        for row in self.rows:
            if row.layer not in self.layers:
                raise ValueError(f"got a row of {row.layer}, which is not among the layers")
            if (row.layer, row.bits) in seen:
                raise ValueError(f"got two rows of {row.layer} at {row.bits} bits, wanted one")
            seen.add((row.layer, row.bits))
        for name, numel in (self.layers | self.removed | self.first_last).items():
            if numel < 1:
                raise ValueError(f"got {numel} weights in {name}, wanted at least 1")
        return self

    def row(self, layer: str, bits: int) -> SensitivityRow:
        """The row of a layer and bit width.

        Raises:
            InputError: it was not measured.
        """
        for row in self.rows:
            if row.layer == layer and row.bits == bits:
                return row
        raise InputError(f"sensitivity of {self.model}: got no row of {layer} at {bits} bits, wanted one")

    def column(self, metric: Literal["mse", "psnr", "lpips", "clip_drop"], bits: int) -> dict[str, float] | None:
        """A metric of every layer at one bit width, in the order of `layers`; None where one of them has none.

        Raises:
            InputError: a layer has no row at that bit width.
        """
        rows = {row.layer: row for row in self.rows if row.bits == bits}
        missing = [name for name in self.layers if name not in rows]
        if missing:
            raise InputError(f"sensitivity of {self.model}: got no row at {bits} bits of {named(missing)}")
        values = {name: getattr(rows[name], metric) for name in self.layers}
        return None if any(value is None for value in values.values()) else values

    def sha256(self) -> str:
        """Names what was measured, whatever file it is in; not how long it took, so that equal runs are equal."""
        return sha256_json(self.model_dump(mode="json", exclude={"rows": {"__all__": {"seconds"}}}))


def read_table(path: Path) -> SensitivityTable:
    """The table in a sensitivity file; `InputError` if there is none."""
    return parse(SensitivityTable, read_json(path), str(path))


def write_table(path: Path, table: SensitivityTable) -> None:
    """Writes the file, whole or not at all."""
    remove_leftovers(path)
    write_json(path, table.model_dump(mode="json"))
