"""The page in a real Chromium, without a window: it draws Python's picture, and says so where bytes are damaged."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

import bitsfusion
from bitsfusion.evaluation.drawing import generate_to_folder
from bitsfusion.runs.components import OtherBits
from bitsfusion.runs.packing import init_pipeline

from ...chromium import chromium, needs_chromium

WAIT = 240  # seconds
PROMPT, SEED, STEPS, GUIDANCE = "a green triangle and a white cross", 7, 12, 5.0

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def site(packed: Path, archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("web") / "page"
    made = bitsfusion.export(packed, "web", out, vendor=archives)
    assert {share.type for share in made.shares} == {"int4", "int8", "float32"}
    return out


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    with served(site.parent) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        driver.set_script_timeout(WAIT)
        yield driver


def wait_for(browser: WebDriver, state: str) -> None:
    """Waits until the page is loading, ready, drawing or in error."""
    script = "return [document.body.dataset.state, document.getElementById('status').textContent]"
    seen = WebDriverWait(browser, WAIT, 0.1).until(
        lambda driver: (found := driver.execute_script(script))[0] in (state, "error") and found,
        f"{state}: got {browser.execute_script(script)}",
    )
    assert seen[0] == state, browser.find_element(By.ID, "error").text


def drawn(browser: WebDriver) -> np.ndarray:
    """What the page shows, [h, w, 3]."""
    wait_for(browser, "ready")
    WebDriverWait(browser, WAIT, 0.1).until(
        lambda driver: driver.find_element(By.ID, "status").text.startswith("Drawn in")
    )
    width, height, pixels = browser.execute_script(
        "const c = document.getElementById('picture'); "
        "return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    )
    return np.array(pixels).reshape(height, width, 4)[..., :3]


def check_picture(browser: WebDriver, url: str, packed: Path, out: Path) -> None:
    """The page draws, without a word on the console, what Python draws."""
    asked = {"prompt": PROMPT, "seed": SEED, "steps": STEPS, "guidance": GUIDANCE, "backend": "wasm", "draw": 1}
    browser.get(f"{url}/page/index.html?{urlencode(asked)}")
    wait_for(browser, "drawing")
    found = drawn(browser)
    (path,) = generate_to_folder(
        str(packed), [PROMPT], out, sampler="own", steps=STEPS, guidance=GUIDANCE, seed=SEED, device="cpu"
    )
    wanted = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.ptp(wanted) > 100
    assert np.abs(found - wanted).max() <= 2
    assert float(browser.find_element(By.ID, "bytes").text.split()[0]) > 16
    assert browser.get_log("browser") == []


def test_it_draws_pythons_picture(browser: WebDriver, url: str, packed: Path, tmp_path: Path) -> None:
    check_picture(browser, url, packed, tmp_path)


def test_the_flow_model(browser: WebDriver, archives: Path, tmp_path: Path) -> None:
    """A transformer, its text encoder told what is padding."""
    others = OtherBits(text_encoder="6", vae="6", token_embedding=8)
    init_pipeline("embedded:flow", tmp_path / "packed", recipe="uniform:3", others=others)
    bitsfusion.export(tmp_path / "packed", "web", tmp_path / "page", vendor=archives)
    with served(tmp_path) as url:
        check_picture(browser, url, tmp_path / "packed", tmp_path / "drawn")


def test_a_damaged_byte_gives_a_message(browser: WebDriver, url: str, site: Path) -> None:
    damaged = site.parent / "damaged"
    shutil.copytree(site, damaged)
    weights = damaged / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    browser.get(f"{url}/damaged/index.html?draw=1&backend=wasm")
    with pytest.raises(AssertionError, match=r"diffusion_pytorch_model\.safetensors: .* damaged"):
        wait_for(browser, "ready")
    size = browser.execute_script("return document.getElementById('picture').width")
    assert size == 1
    assert not browser.find_element(By.ID, "draw").is_enabled()
