"""The pictures of a report: the original's above the result's, and the whole contact sheet."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitsfusion.evaluation.report.figures import section
from bitsfusion.evaluation.report_data import Pictures, ReportData, Rung

_IN_STRIP = 6
_PIXEL_ART = 128  # up to this side, pixels are shown as they are
_LARGEST_SIDE = 256  # larger pictures are reduced: a report is looked at, not measured


def picture_strip(data: ReportData) -> str:
    """The original above the result for a few prompts, evenly spaced over the sheet. Empty without both."""
    pictures = data.pictures
    if pictures is None or not {data.reference, data.final} <= set(pictures.images):
        return ""
    count = len(pictures.prompts)
    chosen = sorted({round(i * (count - 1) / (_IN_STRIP - 1)) for i in range(_IN_STRIP)})
    rows = []
    for name in (data.reference, data.final):
        images = "".join(_picture(pictures, data.rung(name), i) for i in chosen)
        rows.append(f'<div class="row"><span>{escape(data.rung(name).label)}</span>{images}</div>')
    texts = "".join(f"<span>{escape(pictures.prompts[i])}</span>" for i in chosen)
    rows.append(f'<div class="row texts" aria-hidden="true"><span></span>{texts}</div>')
    return f'<div class="hero" style="--n:{len(chosen)}">{"".join(rows)}</div>'


def contact_sheet(data: ReportData) -> str:
    """Every prompt's picture from every rung that has pictures, in the order of the rungs."""
    pictures = data.pictures
    if pictures is None:
        return ""
    shown = [rung for rung in data.rungs if rung.name in pictures.images]
    names = "".join(f"<span>{escape(rung.label)}</span>" for rung in shown)
    blocks = "".join(
        f'<figure style="--n:{len(shown)}"><figcaption>{escape(prompt)}</figcaption><div class="strip">'
        + "".join(_picture(pictures, rung, index) for rung in shown)
        + f'</div><div class="strip names" aria-hidden="true">{names}</div></figure>'
        for index, prompt in enumerate(pictures.prompts)
    )
    lead = "A prompt and a seed a strip."
    if pictures.passed:
        lead += " ✓ shows what was asked, ✗ does not."
    return section("Pictures", lead, f'<div class="sheet">{blocks}</div>')


def _picture(pictures: Pictures, rung: Rung, index: int) -> str:
    image = pictures.images[rung.name][index]
    word = mark = ""
    if rung.name in pictures.passed:
        passed = pictures.passed[rung.name][index]
        word = ", shows it" if passed else ", does not show it"
        style, sign = ("pass", "✓") if passed else ("fail", "✗")
        mark = f'<i class="{style}" aria-hidden="true">{sign}</i>'
    height, width = image.shape[:2]
    kind = ' class="pixels"' if max(height, width) <= _PIXEL_ART else ""
    text = escape(f"{rung.label}: {pictures.prompts[index]}{word}")
    source = f'src="{_data_url(image)}" width="{width}" height="{height}"'
    return f'<span class="picture"><img{kind} {source} alt="{text}">{mark}</span>'


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
