"""The table of docs/how-to/export.md: what each export takes, and how far its pictures are from the packed folder's.

python tools/export_table.py WORK [MODEL BITS [COVER]]

MODEL (the embedded one at 1.99 bits unless given) is packed into WORK/packed with float16 scales, exported to every
target, read back by what reads it, and drawn with: one test prompt of each task of its world. The page draws in
Chromium, by WebAssembly; it needs node's npm, chromium, chromedriver and selenium.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import torch
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

import bitsfusion
from bitsfusion.cli.options import time_cover
from bitsfusion.diffusion.denoise import pipeline_denoiser, with_denoiser
from bitsfusion.embedded import embedded_model
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.exporting.gguf import layers_read
from bitsfusion.exporting.onnx_runtime import use_graphs
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline

STEPS, SEED = 20, 1024
WAIT = 600  # seconds, for a picture of the page
TARGETS: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "dense": ({}, "diffusers without this package", "whole pipeline"),
    "onnx": ({}, "ONNX Runtime", "whole pipeline"),
    "gguf": ({"names": "diffusers"}, "ComfyUI-GGUF, stable-diffusion.cpp, diffusers (not UNets)", "denoiser"),
    "web": ({}, "browsers", "whole pipeline, page"),
}
"""Target -> its options, who reads it, what is in it."""


def asked(model: str) -> tuple[tuple[str, ...], range, float]:
    """One test prompt of each task, a seed for each, and the guidance."""
    known = embedded_model(model)
    assert known is not None
    texts = world_prompts(known.world, "test", 1, 0).texts
    return texts, range(SEED, SEED + len(texts)), known.guidance


def draw(pipeline: Any, model: str) -> np.ndarray:
    """[n, h, w, 3] float32 of 255."""
    texts, seeds, guidance = asked(model)
    return generate_images(pipeline, texts, seeds, STEPS, guidance, "own").astype(np.float32)


def from_dense(out: Path, packed: Path, model: str) -> np.ndarray:
    """The folder as any program of diffusers loads it."""
    return draw(load_pipeline(str(out)), model)


def from_gguf(out: Path, packed: Path, model: str) -> np.ndarray:
    """The packed pipeline with a denoiser of what gguf's own dequantization reads."""
    pipeline: Any = load_pipeline(str(packed))
    old = pipeline_denoiser(pipeline)
    config = {key: value for key, value in old.config.items() if key not in ("quantization_config", "bitsfusion_time")}
    denoiser = type(old).from_config(config)
    shapes = {name: tensor.shape for name, tensor in denoiser.state_dict().items()}
    read = {name: torch.from_numpy(values.copy()).reshape(shapes[name]) for name, values in layers_read(out)}
    denoiser.load_state_dict(read)
    return draw(with_denoiser(pipeline, denoiser.eval()), model)


def from_onnx(out: Path, packed: Path, model: str) -> np.ndarray:
    """The packed pipeline with ONNX Runtime in the place of its networks."""
    pipeline: Any = load_pipeline(str(packed))
    use_graphs(pipeline, out)
    return draw(pipeline, model)


def from_web(out: Path, packed: Path, model: str) -> np.ndarray:
    """What the page draws in Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(out))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    texts, seeds, guidance = asked(model)
    try:
        return np.stack(
            [_page_picture(browser, server.server_port, *each, guidance) for each in zip(texts, seeds, strict=True)]
        )
    finally:
        browser.quit()
        server.shutdown()


def _page_picture(browser: Any, port: int, text: str, seed: int, guidance: float) -> np.ndarray:
    query = {"prompt": text, "seed": seed, "steps": STEPS, "guidance": guidance, "backend": "wasm", "draw": 1}
    browser.get(f"http://127.0.0.1:{port}/?{urlencode(query)}")
    status = "return document.body.dataset.state + ' ' + document.getElementById('status').textContent"
    ended = ("ready Drawn in", "error")
    said = WebDriverWait(browser, WAIT, 0.2).until(
        lambda driver: (now := driver.execute_script(status)).startswith(ended) and now
    )
    assert said.startswith(ended[0]), said
    width, height, pixels = browser.execute_script(
        "const c = document.getElementById('picture'); "
        "return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    )
    return np.array(pixels, dtype=np.float32).reshape(height, width, 4)[..., :3]


READERS: Mapping[str, Callable[[Path, Path, str], np.ndarray]] = {
    "dense": from_dense,
    "gguf": from_gguf,
    "onnx": from_onnx,
    "web": from_web,
}


def main(work: Path, model: str = "embedded", bits: str = "1.99", cover: str = "basis") -> None:
    """Prints a line a target."""
    packed = work / "packed"
    if not packed.exists():
        bitsfusion.init_pipeline(model, packed, bits=float(bits), samplers=time_cover([cover]), scale_dtype="float16")
    wanted = draw(load_pipeline(str(packed)), model)
    print("| format | holds | bytes | weights | who reads it | largest and mean difference of a pixel, of 255 |")
    print("|---|---|---|---|---|---|")
    print(f"| the packed folder | whole pipeline | {bytes_of(packed):,} | exact | diffusers with this package | 0, 0 |")
    for target, (options, readers, holds) in TARGETS.items():
        out = work / target
        made = bitsfusion.export(packed, target, out, **options)
        rounded = [share.type for share in made.shares if not share.exact]
        exact = f"rounded: {', '.join(rounded)}" if rounded else "exact"
        difference = np.abs(READERS[target](out, packed, model) - wanted)
        shown = f"{difference.max():g}, {difference.mean():.2g}"
        print(f"| `--to {target}` | {holds} | {made.bytes:,} | {exact} | {readers} | {shown} |")


def bytes_of(folder: Path) -> int:
    """Of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
