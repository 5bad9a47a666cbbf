"""A folder of four captioned pictures of noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def captioned(folder: Path) -> Path:
    """20x16 pixels each, in an imagefolder with its metadata; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    lines = []
    for name in ("0.png", "1.png", "2.png", "3.png"):
        Image.fromarray(noise.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": "red circle"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
