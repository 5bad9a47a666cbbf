"""The examples run as they stand; scripts find what they import."""

import json
import runpy
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from .hub import serve_hub
from .tiny.kinds import build_sd

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


@pytest.mark.parametrize(
    ("name", "arguments", "printed"),
    [
        ("count_bits.py", [], "1.98847 bits on average"),
        ("compare_scales.py", [], "exact"),
        ("pack_without_training.py", ["OUT"], "bits on average"),
        ("train_adapter.py", ["OUT"], "with it, 223488 trained parameters"),
    ],
)
def test_example(name, arguments, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *(str(tmp_path) for _ in arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert printed in capsys.readouterr().out


def test_no_example_is_left_out():
    assert len(list(EXAMPLES.glob("*.py"))) == 4


@pytest.mark.parametrize("model", [pytest.param("embedded", marks=pytest.mark.slow), "tiny"])
def test_the_notebook(model, tmp_path, monkeypatch, capsys):
    """Every cell in order, with fewer samples, prompts and steps; the push goes to a stand-in for the hub."""
    cells = json.loads((EXAMPLES / "quantize_and_share.ipynb").read_text())["cells"]
    names = {"__name__": "__main__"}
    fewer = {"SAMPLES": 1, "STEPS": 2, "REPO": "me/tiny"}
    if model == "tiny":  # whose first and last layers, at 8 bits, are a large part of it
        build_sd().save_pretrained(tmp_path / model)
        fewer |= {"MODEL": str(tmp_path / model), "BITS": 4.0}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_some_token")
    with serve_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        for cell in cells:
            if cell["cell_type"] == "code":
                assert not cell["outputs"]
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
                if "parameters" in cell["metadata"].get("tags", []):
                    names |= fewer | {"PROMPTS": names["PROMPTS"][:2]}
    printed = capsys.readouterr().out
    assert (
        f"{names['BITS']:.2f} bits" in printed and "calibrated - plain:" in printed and f"{hub.url}/me/tiny" in printed
    )
    assert b'from_pretrained("me/tiny")' in hub.files["README.md"]
    assert b"--calibrate --calibration-samples 1" in hub.files["README.md"]
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert hub.files[weights] == (tmp_path / "runs/notebook/calibrated" / weights).read_bytes()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_what_it_imports(script, monkeypatch):
    monkeypatch.syspath_prepend(str(script.parent))  # as where it is called by its path
    runpy.run_path(str(script), run_name="imported")
