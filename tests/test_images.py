"""Encoded pictures are judged by their header first, and nothing is silently converted."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import BAD_PICTURES, COLOUR_PICTURE, GREY_PICTURE, encode
from linegate.errors import ImageError
from linegate.images import decode_image, encode_png, read_image
from linegate.stages import PixelFormat, Reason


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture_is_refused_in_one_line_with_its_reason(name: str) -> None:
    data, reason = BAD_PICTURES[name]
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.reason is reason
    assert ":" in str(caught.value), "the text says how to mend it"
    assert "\n" not in str(caught.value)


def test_too_large_a_picture_is_refused_before_its_pixels_are_decoded() -> None:
    whole = encode(Image.new("L", (10_000, 10_000)))
    with pytest.raises(ImageError) as caught:
        decode_image(whole[:64])  # the header alone: the limit speaks before the torn rest can
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE


def test_the_limit_of_pixels_can_be_set() -> None:
    data = encode(GREY_PICTURE)
    assert decode_image(data, max_pixels=80 * 64)[0].shape == (64, 80)
    with pytest.raises(ImageError, match="5,119 pixels"):
        decode_image(data, max_pixels=80 * 64 - 1)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_very_pixels(image_format: str) -> None:
    for picture, pixel_format in ((GREY_PICTURE, PixelFormat.MONO8), (COLOUR_PICTURE, PixelFormat.RGB8)):
        pixels, found, _ = decode_image(encode(picture, image_format))
        assert found is pixel_format
        np.testing.assert_array_equal(pixels, np.asarray(picture))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}])
def test_jpeg_gives_the_pixels_that_pillow_gives(options: dict[str, object]) -> None:
    for picture in (GREY_PICTURE, COLOUR_PICTURE):
        data = encode(picture, "JPEG", **options)
        np.testing.assert_array_equal(decode_image(data)[0], np.asarray(Image.open(io.BytesIO(data))))


def test_orientation_tag_is_not_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pixels, _, _ = decode_image(encode(COLOUR_PICTURE, "JPEG", exif=exif))
    assert pixels.shape == (64, 80, 3)


def test_png_encoding_is_undone_by_decoding() -> None:
    rgb = np.asarray(COLOUR_PICTURE)
    for image, pixel_format in ((np.asarray(GREY_PICTURE), PixelFormat.MONO8), (rgb, PixelFormat.RGB8)):
        np.testing.assert_array_equal(decode_image(encode_png(image, pixel_format))[0], image)
    np.testing.assert_array_equal(decode_image(encode_png(rgb[..., ::-1].copy(), PixelFormat.BGR8))[0], rgb)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read"):
        read_image(tmp_path / "gone.png")
