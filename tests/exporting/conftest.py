"""Packed folders to carry over: the embedded model, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitsfusion.runs.components import OtherBits
from bitsfusion.runs.packing import init_pipeline


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model at 1.99 bits, its features of every step stored, text encoder and VAE packed too."""
    path = tmp_path_factory.mktemp("packed") / "embedded"
    init_pipeline("embedded", path, bits=1.99, others=OtherBits(text_encoder="6", vae="6", token_embedding=8))
    return path
