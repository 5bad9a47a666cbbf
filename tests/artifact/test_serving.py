"""Serving a packed folder needs the core dependencies alone, and nothing that Windows has not."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from bitsfusion.runs.packing import init_pipeline

# What the extras bring and nothing in the core does. (transformers itself wants typer and PyYAML.)
EXTRAS = {
    *("datasets", "webdataset", "jinja2", "matplotlib", "torchmetrics", "scipy", "rich", "ray", "starlette", "uvicorn"),
    *("hypothesis", "pytest", "bitsfusion_lab"),
}
SERVE = f"""
import sys

class Without:
    # Finds what another finder does, but for the extras: as if they were not installed.

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):  # find_distributions, by which versions are looked up
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {EXTRAS!r}
        return None if absent else self.finder.find_spec(name, path, target)

sys.modules["fcntl"] = None
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import bitsfusion
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
picture = pipeline("a red circle", num_inference_steps=4, output_type="np").images[0]
assert picture.shape == (64, 64, 3)
parts = {{name.split(".")[1] for name in sys.modules if name.startswith("bitsfusion.")}}
assert not parts & {{"training", "data", "metrics", "sensitivity", "recipe", "evaluation", "runs", "cli", "api"}}, parts
from bitsfusion.artifact.verify import verify_folder
verify_folder(sys.argv[1])
print("served")
"""


def test_serving_needs_the_core_dependencies_alone(tmp_path):
    init_pipeline("embedded", tmp_path / "packed", recipe="uniform:2")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SERVE, str(tmp_path / "packed")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("served"), done.stderr


def test_the_core_dependencies_are_those_of_serving():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {requirement.split(">")[0].lower() for requirement in project["dependencies"]}
    assert not names & EXTRAS
