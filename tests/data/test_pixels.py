"""Whatever an image file looks like, it becomes the same square of pixels, or one line says why not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bitsfusion.data.pixels import decode_image, to_model_range
from bitsfusion.data.records import BadSampleError, caption_text


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


WHITE = (255, 255, 255)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def square_of(content: object, resolution: int) -> torch.Tensor:
    return decode_image(content, resolution)[0]


def gradient(width=64, height=64) -> Image.Image:
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (height, 1)), np.tile(ramp[::-1], (height, 1)), np.full((height, width), 128)], 2)
    return Image.fromarray(pixels.astype(np.uint8))


def test_images_are_cut_to_the_centre_square():
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = 255
    square = square_of(encoded(Image.fromarray(pixels)), 20)
    assert square.shape == (3, 20, 20) and square.dtype == torch.uint8
    assert torch.all(square == 255) and torch.all(to_model_range(square) == 1)
    assert torch.all(to_model_range(torch.zeros_like(square)) == -1)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "I;16"])
def test_every_mode_becomes_the_same_colours(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((32, 32), 128 << 8, dtype=np.uint16))
    else:
        image = Image.new("RGB", (32, 32), WHITE if mode in ("1", "P") else (128, 128, 128)).convert(mode)
    square = square_of(encoded(image, "TIFF" if mode == "CMYK" else "PNG"), 16)
    assert square.shape == (3, 16, 16)
    assert (square.int() - (255 if mode in ("1", "P") else 128)).abs().max() <= 1


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert torch.all(square_of(encoded(clear), 16) == 255)
    half = square_of(encoded(Image.new("RGBA", (32, 32), (255, 0, 0, 128))), 16)
    assert half[0].min() == 255 and (half[1].int() - 127).abs().max() <= 1
    palette = Image.new("P", (32, 32), 0)
    assert torch.all(square_of(encoded(palette, transparency=0), 16) == 255)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    plain, turned = gradient(), square_of(encoded(gradient(), "PNG", exif=exif), 64)
    assert torch.equal(turned, square_of(encoded(plain), 64).flip(1, 2))


def test_a_large_jpeg_decoded_at_a_fraction_looks_like_the_whole_one():
    image = gradient(1024, 1024)
    fraction = square_of(encoded(image, "JPEG", quality=95), 64)
    whole = square_of(encoded(image), 64)
    assert (fraction.float() - whole.float()).abs().mean() < 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "cannot be read: unknown format"),
        (b"", "cannot be read: unknown format"),
        (encoded(NOISE, "JPEG")[:-900], "cannot be read: .*truncated"),
        (encoded(NOISE)[:2000], "cannot be read: .*truncated"),
        (encoded(Image.new("RGB", (15, 200))), "15 x 200 pixels is too small for 64, wanted 16 or more"),
        (encoded(Image.fromarray(np.ones((64, 64), dtype=np.float32)), "TIFF"), "mode F"),
        (17, "image is of type int"),
        (None, "image is of type NoneType"),
    ],
)
def test_what_is_no_image_is_one_line(content, message):
    with pytest.raises(BadSampleError, match=message) as caught:
        square_of(content, 64)
    assert "\n" not in str(caught.value)


def test_an_image_of_absurd_size_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadSampleError, match="decompression bomb"):
        square_of(encoded(gradient()), 64)


@pytest.mark.parametrize("value", ["a cat", b"a cat", " a cat\n", ["a cat", "an animal"], ("a cat",)])
def test_captions_are_texts_bytes_or_lists(value):
    assert caption_text(value) == "a cat"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no caption"),
        ([], "no caption"),
        ("", "empty"),
        (b" \n", "empty"),
        (3, "type int"),
        ({"en": "a cat"}, "type dict"),
        (b"\xff\xfe", "not UTF-8"),
        ("x" * 30_000, "30000 characters"),
    ],
)
def test_what_is_no_caption_is_one_line(value, message):
    with pytest.raises(BadSampleError, match=message):
        caption_text(value)


@pytest.mark.parametrize(
    ("width", "height", "wanted"), [(96, 64, (64, 96, 0, 8)), (64, 128, (128, 64, 16, 0)), (40, 40, (40, 40, 0, 0))]
)
def test_the_size_and_the_crop_are_told(width, height, wanted):
    assert decode_image(encoded(gradient(width, height)), 32)[1] == wanted
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: width and height change places
    height, width, top, left = wanted
    assert decode_image(encoded(gradient(*((width, height))), exif=exif), 32)[1] == (width, height, left, top)
