"""The work folder: rows and outputs of a run that is under way, so that an interrupted one continues."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.schema import parse
from bitsfusion.io.texts import read_json, write_json
from bitsfusion_lab.bench.bench_file import BenchRow


class Work:
    """Fields: folder, for whatever is worth keeping between runs. Rows belong to one run: `finish` removes them."""

    def __init__(self, folder: Path, identity: Any) -> None:
        """`identity` is plain JSON of all that a row depends on."""
        self.folder = folder
        self._under_way = folder / f"run-{sha256_json(identity)[:12]}"
        self._under_way.mkdir(parents=True, exist_ok=True)

    def output(self, name: str) -> Path:
        """Where the method's output on the fixed inputs is."""
        return self._under_way / f"{name}.safetensors"

    def row(self, name: str) -> BenchRow | None:
        """The row that this run measured before it was interrupted."""
        path = self._under_way / f"{name}.json"
        try:
            return parse(BenchRow, read_json(path), str(path)) if self.output(name).is_file() else None
        except InputError:
            return None

    def keep(self, row: BenchRow) -> None:
        """Writes a row that is measured."""
        write_json(self._under_way / f"{row.name}.json", row.model_dump(mode="json"))

    def rounds(self, names: list[str]) -> list[dict[str, float]]:
        """The rounds that this run timed for a group before it was interrupted: seconds by method."""
        try:
            rounds: list[dict[str, float]] = read_json(self._rounds_file(names))
            return rounds
        except InputError:
            return []

    def keep_rounds(self, names: list[str], rounds: list[dict[str, float]]) -> None:
        """Writes the rounds of a group that are timed so far."""
        write_json(self._rounds_file(names), rounds)

    def _rounds_file(self, names: list[str]) -> Path:
        return self._under_way / f"rounds-{sha256_json(names)[:12]}.json"

    def finish(self) -> None:
        """Removes rows and outputs: the result holds them now."""
        shutil.rmtree(self._under_way)
