"""Encoded pictures are judged by their header first, and nothing is silently converted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import encode, spot_picture
from linegate.errors import ImageError
from linegate.images import decode_image, encode_png, read_image
from linegate.stages import PixelFormat, Reason
from PIL import Image

GREY = Image.fromarray(spot_picture(defect=False, size_wh=(80, 64)))
COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8))


def cv2_bytes(suffix: str, pixels: np.ndarray) -> bytes:
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


SIXTEEN_GREY = np.random.default_rng(1).integers(0, 65536, (64, 80), dtype=np.uint16)
SIXTEEN_COLOUR = np.random.default_rng(1).integers(0, 65536, (64, 80, 3), dtype=np.uint16)

BAD = {
    "zero bytes": (b"", Reason.IMAGE_EMPTY, "no bytes"),
    "no picture": (b"GET / HTTP/1.1", Reason.IMAGE_UNREADABLE, "not a readable"),
    "another format": (encode(GREY, "GIF"), Reason.IMAGE_UNREADABLE, "not a readable"),
    "truncated JPEG": (encode(COLOUR, "JPEG")[:900], Reason.IMAGE_TRUNCATED, "torn"),
    "truncated PNG": (encode(COLOUR, "PNG")[:900], Reason.IMAGE_TRUNCATED, "torn"),
    "16-bit grey PNG": (cv2_bytes(".png", SIXTEEN_GREY), Reason.IMAGE_FORMAT, "16"),
    "16-bit colour PNG": (cv2_bytes(".png", SIXTEEN_COLOUR), Reason.IMAGE_FORMAT, "16"),
    "16-bit grey TIFF": (cv2_bytes(".tif", SIXTEEN_GREY), Reason.IMAGE_FORMAT, "16"),
    "16-bit colour TIFF": (cv2_bytes(".tif", SIXTEEN_COLOUR), Reason.IMAGE_FORMAT, "16"),
    "16-bit PGM": (cv2_bytes(".pgm", SIXTEEN_GREY), Reason.IMAGE_FORMAT, "16"),
    "16-bit PPM": (cv2_bytes(".ppm", SIXTEEN_COLOUR), Reason.IMAGE_FORMAT, "16"),
    "palette": (encode(COLOUR.convert("P"), "PNG"), Reason.IMAGE_FORMAT, "palette"),
    "1-bit": (encode(GREY.convert("1"), "PNG"), Reason.IMAGE_FORMAT, "1-bit"),
    "alpha": (encode(COLOUR.convert("RGBA"), "PNG"), Reason.IMAGE_FORMAT, "alpha"),
    "grey with alpha": (encode(GREY.convert("LA"), "PNG"), Reason.IMAGE_FORMAT, "alpha"),
    "transparent colour": (encode(COLOUR, "PNG", transparency=(0, 0, 0)), Reason.IMAGE_FORMAT, "alpha"),
    "CMYK": (encode(COLOUR.convert("CMYK"), "JPEG"), Reason.IMAGE_FORMAT, "CMYK"),
    "1 × 1": (encode(Image.new("L", (1, 1))), Reason.IMAGE_TOO_SMALL, "1 × 1"),
    "100 megapixels": (encode(Image.new("L", (10_000, 10_000))), Reason.IMAGE_TOO_LARGE, "10000 × 10000"),
    "800 megapixels": (encode(Image.new("1", (40_000, 20_000))), Reason.IMAGE_TOO_LARGE, "pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_picture_is_refused_in_one_line_with_its_reason(name: str) -> None:
    data, reason, words = BAD[name]
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.reason is reason
    assert words in str(caught.value)
    assert ":" in str(caught.value), "the text says how to mend it"
    assert "\n" not in str(caught.value)


def test_too_large_a_picture_is_refused_before_its_pixels_are_decoded() -> None:
    whole = encode(Image.new("L", (10_000, 10_000)))
    with pytest.raises(ImageError) as caught:
        decode_image(whole[:64])  # the header alone: the limit speaks before the torn rest can
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE


def test_the_limit_of_pixels_can_be_set() -> None:
    data = encode(GREY)
    assert decode_image(data, max_pixels=80 * 64)[0].shape == (64, 80)
    with pytest.raises(ImageError, match="5,119 pixels"):
        decode_image(data, max_pixels=80 * 64 - 1)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_very_pixels(image_format: str) -> None:
    for picture, pixel_format in ((GREY, PixelFormat.MONO8), (COLOUR, PixelFormat.RGB8)):
        pixels, found, _ = decode_image(encode(picture, image_format))
        assert found is pixel_format
        np.testing.assert_array_equal(pixels, np.asarray(picture))


def test_orientation_tag_is_not_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pixels, _, _ = decode_image(encode(COLOUR, "JPEG", exif=exif))
    assert pixels.shape == (64, 80, 3)


def test_png_encoding_is_undone_by_decoding() -> None:
    rgb = np.asarray(COLOUR)
    for image, pixel_format in ((np.asarray(GREY), PixelFormat.MONO8), (rgb, PixelFormat.RGB8)):
        np.testing.assert_array_equal(decode_image(encode_png(image, pixel_format))[0], image)
    np.testing.assert_array_equal(decode_image(encode_png(rgb[..., ::-1].copy(), PixelFormat.BGR8))[0], rgb)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read"):
        read_image(tmp_path / "gone.png")
