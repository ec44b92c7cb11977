"""Encoded images → pixels, strictly, and pixels → encoded images.

Rules kept here: the header is read and judged before a pixel is decoded; nothing is silently converted, for a 16-bit or
CMYK picture squeezed into 8 bits would be judged by values that the camera never saw; a torn file is an error, never a
picture with a grey rest; the orientation tag is not followed, since a camera on a line does not turn.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import simplejpeg
from PIL import Image as PillowImage

from linegate.errors import ImageError
from linegate.stages import Image, PixelFormat, Reason

IMAGE_SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}
)
# Pillow warns of large pictures; the limit below is ours, and stricter.
warnings.filterwarnings("ignore", category=PillowImage.DecompressionBombWarning)
_FORMATS: Final = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
_MEDIA_TYPES: Final = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "WEBP": "image/webp",
    "PPM": "image/x-portable-anymap",
}
SUFFIX_OF_MEDIA_TYPE: Final = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
    "image/webp": ".webp",
    "image/x-portable-anymap": ".pnm",
}
MAX_PIXELS: Final = 64_000_000
MIN_SIDE_PX: Final = 16

_MODE_MENDS: Final = {
    "P": ("a palette picture", "save it as 8-bit grey or RGB"),
    "PA": ("a palette picture with alpha", "save it as 8-bit grey or RGB"),
    "LA": ("a picture with an alpha channel", "save it without transparency"),
    "La": ("a picture with an alpha channel", "save it without transparency"),
    "RGBA": ("a picture with an alpha channel", "save it without transparency"),
    "RGBa": ("a picture with an alpha channel", "save it without transparency"),
    "CMYK": ("a CMYK picture", "save it as RGB"),
    "YCbCr": ("a YCbCr picture", "save it as RGB"),
    "LAB": ("a CIELAB picture", "save it as RGB"),
    "1": ("a 1-bit picture", "save it as 8-bit grey"),
}


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[Image, PixelFormat, str]:
    """Return pixels, pixel format and media type of an encoded 8-bit grey or RGB picture.

    Pixels are uint8, (H, W) for Mono8 or (H, W, 3) for RGB8.

    Raises:
        ImageError: the bytes are empty, torn, no picture, not 8-bit grey or RGB, under 16 pixels a side, or of more
            than `max_pixels`; the last two are found before decoding.
    """
    if not data:
        raise ImageError(Reason.IMAGE_EMPTY, "the image has no bytes: check that the camera or copy has finished writing")
    try:
        picture = PillowImage.open(io.BytesIO(data), formats=_FORMATS)
    except PillowImage.DecompressionBombError:
        raise _too_large(f"more than {2 * (PillowImage.MAX_IMAGE_PIXELS or 0):,} pixels", max_pixels) from None
    except Exception as error:
        known = "PNG, JPEG, BMP, TIFF, WebP or PNM"
        head = data[:4].hex(" ")
        text = f"not a readable {known} picture ({len(data)} bytes beginning {head}): send one of these formats"
        raise ImageError(Reason.IMAGE_UNREADABLE, text) from error
    with picture:
        _check_header(picture, max_pixels)
        # A camera's JPEG with a second picture behind the first (MPO) is a JPEG here: the first is the part.
        kind = "JPEG" if picture.format == "MPO" else str(picture.format)
        try:
            pixels = _decode_jpeg(data, picture.mode) if kind == "JPEG" else np.asarray(picture)
        except Exception as error:
            text = f"the {kind} picture is torn or damaged after {len(data)} bytes ({error}): send it again"
            raise ImageError(Reason.IMAGE_TRUNCATED, text) from error
    return pixels, PixelFormat.MONO8 if pixels.ndim == 2 else PixelFormat.RGB8, _MEDIA_TYPES[kind]


def _decode_jpeg(data: bytes, mode: str) -> Image:
    """Return the pixels of a JPEG, by a decoder that takes libjpeg's warnings for what they are.

    Pillow and OpenCV fill up what is missing with grey and say nothing, where the end of the file looks whole.
    """
    pixels: Image = simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB", strict=True)
    return pixels[..., 0] if mode == "L" else pixels


def _check_header(picture: PillowImage.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise _too_large(f"{width} × {height} pixels", max_pixels)
    if min(width, height) < MIN_SIDE_PX:
        text = f"the picture is {width} × {height} pixels, at least {MIN_SIDE_PX} a side are needed: check the camera"
        raise ImageError(Reason.IMAGE_TOO_SMALL, text)
    if picture.mode in ("L", "RGB"):
        if "transparency" in picture.info:
            what, mend = _MODE_MENDS["RGBA"]
            raise ImageError(Reason.IMAGE_FORMAT, f"expected 8-bit grey or RGB, got {what}: {mend}")
        # Pillow opens 16-bit RGB as RGB with the low bytes dropped; the raw mode in the tile still tells.
        if not any(_is_16_bit(tile) for tile in getattr(picture, "tile", ())):
            return
        what, mend = "16 bits a channel", "set the camera to Mono8 or RGB8"
    elif picture.mode.startswith(("I", "F")):
        what, mend = "16 or 32 bits a pixel", "set the camera to Mono8 or RGB8"
    else:
        what, mend = _MODE_MENDS.get(picture.mode, (f"mode {picture.mode}", "save it as 8-bit grey or RGB"))
    raise ImageError(Reason.IMAGE_FORMAT, f"expected 8-bit grey or RGB, got {what}: {mend}")


def _is_16_bit(tile: tuple[object, ...]) -> bool:
    """Say whether Pillow's decoder arguments (raw mode; for PNM the largest value) tell of 16 bits a channel."""
    arguments = tile[3] if len(tile) > 3 else ""
    if tile[0] in ("ppm", "ppm_plain") and isinstance(arguments, tuple):
        return any(isinstance(argument, int) and argument > 255 for argument in arguments)
    return "16" in str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _too_large(size: str, max_pixels: int) -> ImageError:
    text = f"the picture has {size}, the limit is {max_pixels:,} pixels: raise max_megapixels or set a smaller region"
    return ImageError(Reason.IMAGE_TOO_LARGE, text)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[Image, PixelFormat, str, bytes]:
    """Return pixels, pixel format, media type and the bytes of a picture file.

    Raises:
        ImageError: as `decode_image`, or the file cannot be read; the text names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(Reason.IMAGE_UNREADABLE, f"{path}: cannot be read: {error.strerror}") from error
    try:
        return *decode_image(data, max_pixels=max_pixels), data
    except ImageError as error:
        raise ImageError(error.reason, f"{path}: {error}") from error


def encode_png(image: Image, pixel_format: PixelFormat) -> bytes:
    """Return the pixels as PNG, without loss; level 1, since evidence is written at line speed."""
    return _encode(".png", image, pixel_format, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def encode_jpeg(image: Image, pixel_format: PixelFormat, quality: int = 90) -> bytes:
    """Return the pixels as JPEG of `quality` 1–100."""
    return _encode(".jpg", image, pixel_format, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(suffix: str, image: Image, pixel_format: PixelFormat, options: list[int]) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if pixel_format is PixelFormat.RGB8 else image
    done, encoded = cv2.imencode(suffix, bgr, options)
    if not done:
        raise ImageError(Reason.IMAGE_UNREADABLE, f"{image.shape} pixels could not be encoded as {suffix}")
    return encoded.tobytes()
