"""The pictures of a report: which prompts open it, and what each picture is as HTML has it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitsfusion.report.data import Pictures, ReportData, Rung

_IN_STRIP = 6
_PIXEL_ART = 128  # up to this side, pixels are shown as they are
_LARGEST_SIDE = 256  # larger pictures are reduced: a report is looked at, not measured


@dataclass(frozen=True)
class Picture:
    """An image element: a data URL, its size, what it shows in words, and whether that is right where it is known."""

    url: str
    width: int
    height: int
    text: str
    passed: bool | None
    pixels: bool


def strip_places(data: ReportData) -> list[int]:
    """A few prompts, evenly spaced, of which the original and the result have pictures."""
    if data.pictures is None or not {data.reference, data.final} <= set(data.pictures.images):
        return []
    last = len(data.pictures.prompts) - 1
    return sorted({round(place * last / (_IN_STRIP - 1)) for place in range(_IN_STRIP)})


def picture(pictures: Pictures, rung: Rung, index: int) -> Picture:
    """The picture of prompt number `index` by one rung."""
    image = pictures.images[rung.name][index]
    passed = pictures.passed[rung.name][index] if rung.name in pictures.passed else None
    word = "" if passed is None else ", shows it" if passed else ", does not show it"
    height, width = image.shape[:2]
    text = f"{rung.label}: {pictures.prompts[index]}{word}"
    return Picture(_data_url(image), width, height, text, passed, max(height, width) <= _PIXEL_ART)


def _data_url(image: npt.NDArray[np.uint8]) -> str:
    """uint8 [h, w, 3] as a data URL: PNG where it is small, a reduced JPEG where it is not."""
    picture = Image.fromarray(image)
    stream = io.BytesIO()
    if max(picture.size) <= _PIXEL_ART:
        picture.save(stream, "PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
        picture.save(stream, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
