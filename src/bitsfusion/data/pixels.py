"""Image files to square pixels in [-1, 1], whatever the file's mode, depth or orientation."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bitsfusion.data.records import BadSampleError
from bitsfusion.errors import reason

_LARGEST_ENLARGEMENT = 4
_ORIENTATION = 0x0112  # EXIF; from 5 on width and height change places
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def decode_image(content: Any, resolution: int) -> tuple[Tensor, tuple[int, int, int, int]]:
    """An image file, resized so that its short side is `resolution` (bicubic) and cropped to the centre square.

    EXIF orientation is applied, transparency laid over white, CMYK and palettes turned into RGB, and 16-bit greys
    scaled to 8 bits; an animation gives its first frame. Colour profiles are not applied. JPEGs more than twice too
    large are decoded at a fraction of their size.

    Args:
        content: the file's bytes.
        resolution: in pixels.

    Returns:
        [3, resolution, resolution] uint8; and height and width of the image, and top and left of the square in it
        after resizing, in pixels, as SDXL is told them.

    Raises:
        BadSampleError: no bytes, no image, a truncated or overlarge one, a mode without a known range, or one that
            would have to be enlarged more than four times.
    """
    if not isinstance(content, bytes | bytearray | memoryview):
        raise BadSampleError(f"image is of type {type(content).__name__}, wanted the bytes of an image file")
    try:
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
            turned = opened.getexif().get(_ORIENTATION, 1) >= 5
            if min(width, height) * _LARGEST_ENLARGEMENT < resolution:
                raise BadSampleError(
                    f"image of {width} x {height} pixels is too small for {resolution}, wanted "
                    f"{-(-resolution // _LARGEST_ENLARGEMENT)} or more on the short side"
                )
            opened.draft(None, (2 * resolution, 2 * resolution))
            image = _rgb(ImageOps.exif_transpose(opened))
        sizes = _sizes(*((height, width) if turned else (width, height)), resolution)
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    except BadSampleError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # PIL's plugins raise nearly anything on damaged files
        line = reason(error)
        line = "unknown format" if line.startswith("cannot identify image file") else line
        raise BadSampleError(f"image cannot be read: {line}") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), sizes


def _sizes(width: int, height: int, resolution: int) -> tuple[int, int, int, int]:
    factor = resolution / min(width, height)
    top, left = (max(0, round(side * factor) - resolution) // 2 for side in (height, width))
    return height, width, top, left


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "I"):
        raise BadSampleError(f"image of mode {image.mode} has no known range, wanted 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_model_range(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)
