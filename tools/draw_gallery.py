"""docs/measured/gallery-*.png: the same prompts and seeds in full precision and at falling bits.

python tools/draw_gallery.py WORK docs/measured [MODEL ...]

Of the embedded model and of the grid world's: one test prompt of each of six tasks, the first; full precision, then the
UNet at 1.99 and 1.8 bits a weight and at 1 bit in every layer but the first and the last, calibrated and not trained.
What is in WORK is not made again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import wrap

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

import bitsfusion
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.embedded import MODELS
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.io.atomic import atomic_path
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.calibration import CalibrationJob

GALLERIES = {"embedded": "gallery-embedded.png", "embedded:grid": "gallery-grid.png"}
ROWS: dict[str, dict[str, object]] = {
    "1.99": {"bits": 1.99},
    "1.8": {"bits": 1.8},
    "1": {"recipe": "uniform:1"},
}
SEED, STEPS, SAMPLES, TASKS = 1024, 50, 12, 6
SIDE, GAP, MARGIN, HEAD = 96, 4, 92, 46


def packed(work: Path, model: str, row: str) -> Path:
    """The packed folder of a row."""
    path = work / f"{model.replace(':', '-')}-{row}"
    if not path.exists():
        settings = CalibrationSettings(samples=SAMPLES, guidance=MODELS[model].guidance)
        bitsfusion.init_pipeline(model, path, calibration=CalibrationJob(settings=settings), **ROWS[row])  # type: ignore[arg-type]
    return path


def draw(work: Path, model: str) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.uint8]]]:
    """The prompts, and a label and pictures for each row."""
    known = MODELS[model]
    prompts = world_prompts(known.world, "test", 1, SEED).chosen(range(TASKS))

    def pictures(source: str) -> npt.NDArray[np.uint8]:
        pipeline = load_pipeline(source)
        return generate_images(pipeline, prompts.texts, prompts.seeds, STEPS, known.guidance, known.sampler)

    rows = {"full\nprecision": pictures(model)}
    for row in ROWS:
        path = packed(work, model, row)
        found = inspect_folder(path)
        megabytes = found.bytes_on_disk.total / 1e6
        name = "1 bit a layer,\n8 at the ends" if row == "1" else f"{found.average_bits:.2f} bits"
        rows[f"{name}\n{megabytes:.2f} MB"] = pictures(str(path))
    return prompts.texts, rows


def sheet(texts: tuple[str, ...], rows: dict[str, npt.NDArray[np.uint8]]) -> Image.Image:
    """One picture: a prompt a column, a model a row."""
    size = MARGIN + len(texts) * (SIDE + GAP), HEAD + len(rows) * (SIDE + GAP)
    made = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(10)
    for column, text in enumerate(texts):
        pen.multiline_text((MARGIN + column * (SIDE + GAP), 2), "\n".join(wrap(text, 19)), "black", font, spacing=1)
    for row, (label, pictures) in enumerate(rows.items()):
        top = HEAD + row * (SIDE + GAP)
        pen.multiline_text((2, top + SIDE // 3), label, "black", font)
        for column, picture in enumerate(pictures):
            shown = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            made.paste(shown, (MARGIN + column * (SIDE + GAP), top))
    return made


def main(work: Path, out: Path, *models: str) -> None:
    """Draws those named, or both."""
    for model in models or GALLERIES:
        name = GALLERIES[model]
        made = sheet(*draw(work, model)).quantize(128, dither=Image.Dither.NONE)
        with atomic_path(out / name) as temporary:
            made.save(temporary, format="PNG", optimize=True)
        print(f"{out / name}: {(out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
