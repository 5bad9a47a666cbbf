"""What is published of a model: the page of a run that needs nothing beside it, and the card of a packed folder."""

from __future__ import annotations

from pathlib import Path

from bitsfusion.io.texts import write_text
from bitsfusion.report.data import ReportData
from bitsfusion.report.page import page

__all__ = ["write_report"]


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes `folder`/index.html, whole or not at all, and returns its path.

    The page holds its pictures, charts and style, makes no request, and reads on a phone and in the dark.

    Raises:
        BitsFusionError: the file could not be written.
    """
    path = Path(folder) / "index.html"
    write_text(path, page(data))
    return path
