"""Installs the lowest versions that pyproject.toml allows into .venv-min, and runs the product there.

    python tools/check_lowest.py                     what `make test-min` does
    python tools/check_lowest.py --pin typer==0.18.0    another version in place of one bound, to search for the lowest

Every requirement with a bound, of the package and of the extras below, is pinned to that bound; what those bring in
turn is the newest that fits. Then: import, `init`, load, draw, `verify` and the demo's first steps on the embedded
model, and the tests that use each extra.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("cli", "train", "eval", "vote", "export")
TOOLS = ("pytest", "hypothesis")
TESTS = (
    "tests/artifact/test_serving.py",
    "tests/artifact/test_golden.py",
    "tests/data",
    "tests/exporting",
    "tests/metrics/test_set_distances.py",
    "tests/metrics/test_image_error.py",
    "tests/recipe",
    "tests/report",
    "tests/runs/test_launch.py",
    "tests/vote/test_results.py",
    "tests/vote/test_server.py",
)
_BOUND = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)$")

VERSIONS = """
import sys
from importlib.metadata import version

from packaging.specifiers import SpecifierSet

for pin in sys.argv[1:]:
    name, _, wanted = pin.partition("==")
    got = version(name)
    assert got in SpecifierSet(f"=={wanted}"), f"{name}: got {got}, wanted {wanted}"
    print(f"  {name} {got}")
"""
DRAW = """
import sys

import bitsfusion
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
image = pipeline("a red circle", num_inference_steps=10, output_type="np").images[0]
assert image.shape == (64, 64, 3) and image.std() > 0.01, (image.shape, image.std())
print(f"drew {image.shape} with bitsfusion {bitsfusion.__version__}")
"""


def lowest_pins() -> dict[str, str]:
    """Name -> the version in the bound of each requirement, of the package and of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    bounds = [_BOUND.match(line) for line in requirements if not line.startswith("bitsfusion[")]
    assert all(bounds), f"wanted every requirement as NAME>=VERSION, got {requirements}"
    return {bound[1]: bound[2] for bound in bounds if bound}


def environment(pins: list[str], folder: Path) -> Path:
    """The folder of the programs of an environment with these versions, made again where the pins have changed."""
    programs, stamp = folder / "bin", folder / "pins.txt"
    wanted = "\n".join((*pins, *TOOLS, ""))
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return programs
    if not (programs / "python").exists():
        call(sys.executable, "-m", "venv", folder)
    stamp.unlink(missing_ok=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join((*pins, "")), encoding="utf-8")
    install = (programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    call(*install, "--constraint", constraints, "--editable", f"{ROOT}[{','.join(EXTRAS)}]", *TOOLS)
    stamp.write_text(wanted, encoding="utf-8")
    return programs


def call(*command: object, cwd: Path = ROOT) -> None:
    """Runs a command; the first that fails ends the script."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"} | dict(os.environ)
    settings.pop("PYTHONPATH", None)
    words = [str(word) for word in command]
    if done := subprocess.run(words, cwd=cwd, env=settings, check=False).returncode:
        sys.exit(f"check_lowest: exit code {done} from {' '.join(words)[:300]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pin", action="append", default=[], metavar="NAME==VERSION", help="in place of a bound")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-min", help="the environment's folder")
    parser.add_argument("--no-tests", action="store_true", help="only the embedded model")
    chosen = parser.parse_args()
    pins = [f"{name}=={version}" for name, version in (lowest_pins() | dict(p.split("==") for p in chosen.pin)).items()]
    programs = environment(pins, chosen.venv.resolve())
    python, bitsfusion = programs / "python", programs / "bitsfusion"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        call(python, "-c", VERSIONS, *pins, cwd=work)
        call(bitsfusion, "--help", cwd=work)
        call(bitsfusion, "init", "embedded", "--recipe", "uniform:2", "--out", "packed", cwd=work)
        call(bitsfusion, "verify", "packed", cwd=work)
        call(bitsfusion, "inspect", "packed", cwd=work)
        call(python, "-c", DRAW, "packed", cwd=work)
        call(bitsfusion, "generate", "packed", "a red circle", "--steps", "10", "--out", "pictures", cwd=work)
        call(bitsfusion, "demo", "--until", "init", "--out", "run", "--quiet", cwd=work)
    if not chosen.no_tests:
        call(python, "-m", "pytest", "-q", *TESTS)


if __name__ == "__main__":
    main()
