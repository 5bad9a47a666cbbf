"""`--to web`: a folder that is a page."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent / "page"
"""The page's own files."""
