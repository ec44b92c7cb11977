"""Encoded bytes → a capture: a frame, or the fault that says why there is none.

Rules kept here: bytes always become a capture, never an exception, for behind them stands a part; the bytes go on as they
came, so that evidence is what the sender sent. Where they come from is left to the sources and to `POST /frames`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import uuid4

from linegate.errors import ImageError
from linegate.images import decode_image
from linegate.stages import Frame, FrameFault, Part
from linegate_edge.records import Capture

UNKNOWN_MEDIA_TYPE: Final = "application/octet-stream"
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)


def capture_from_bytes(
    data: bytes,
    *,
    part: Part,
    camera: str,
    view: str,
    sequence: int,
    captured_at: datetime,
    max_pixels: int,
    origin: str | None = None,
) -> Capture:
    """Return the capture of a part from an encoded picture; one that cannot be judged gives a `FrameFault`.

    `captured_at` is aware UTC; a picture of more than `max_pixels` is refused before it is decoded.
    """
    frame_id = str(uuid4())
    try:
        image, pixel_format, media_type = decode_image(data, max_pixels=max_pixels)
    except ImageError as error:
        # No bytes are no evidence: an empty file would only look like one.
        encoded, kind = (data, guess_media_type(data)) if data else (None, None)
        fault = FrameFault(error.reason, str(error), frame_id, camera, view, sequence, captured_at, encoded, kind)
        return Capture(part, fault, origin)
    frame = Frame(image, pixel_format, frame_id, camera, view, sequence, captured_at, data, media_type)
    return Capture(part, frame, origin)


def guess_media_type(data: bytes) -> str:
    """Return the media type that the first bytes tell of, for pictures that cannot be opened."""
    for magic, media_type in _MAGIC:
        if data.startswith(magic):
            return media_type
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "image/x-portable-anymap"
    return UNKNOWN_MEDIA_TYPE
