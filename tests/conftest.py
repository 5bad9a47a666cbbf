"""What every test shares. Marks and default options are in pyproject.toml."""

from __future__ import annotations

import os

# Before torch, transformers or matplotlib are imported: one thread a process, no network, no display.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("default")
