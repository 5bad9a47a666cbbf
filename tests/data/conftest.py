"""A VAE and a tokenizer, and captioned images to encode with them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTokenizer

from bitsfusion.data.cached import cached_data
from bitsfusion.diffusion.conditioning.clip import ClipConditioner

from ..tiny.text import LETTERS, build_tokenizer
from ..tiny.vae import build_vae


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(tokens=12)


@pytest.fixture(scope="session")
def vae() -> AutoencoderKL:
    return build_vae((8, 8, 8), scaling_factor=0.5)


@pytest.fixture(scope="session")
def image_bytes():
    """The PNG file of picture `index`, different for each."""

    def make(index: int, size: tuple[int, int] = (32, 32)) -> bytes:
        noise = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def write_folder(image_bytes):
    """Writes an imagefolder of `count` pictures with captions a, b, c and so on."""

    def write(folder, count):
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for index in range(count):
            (folder / f"{index}.png").write_bytes(image_bytes(index))
            lines.append(json.dumps({"file_name": f"{index}.png", "text": LETTERS[index % 26], "more": 1}))
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture(scope="session")
def conditioner(tokenizer) -> ClipConditioner:
    return ClipConditioner({"": tokenizer}, {})


@pytest.fixture
def open_data(vae, conditioner, tmp_path):
    """`cached_data` of a source at resolution 32, in a cache of the test's own."""

    def open_source(source, **options):
        return cached_data(source, vae, conditioner, tmp_path / "cache", **{"resolution": 32, **options})

    return open_source


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Three records a chunk or part, so that a handful of pictures is many."""
    monkeypatch.setattr("bitsfusion.data.caching.CHUNK", 3)
    monkeypatch.setattr("bitsfusion.data.image_folder._PART", 3)
    monkeypatch.setattr("bitsfusion.data.hf_dataset._PART", 3)
