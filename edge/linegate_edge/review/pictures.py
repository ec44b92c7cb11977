"""Evidence as a page can show it, and as a person can take it away.

Rules kept here: what a browser draws goes out as it is stored, byte for byte; what it does not draw is converted, never
guessed; a picture that is gone or torn is one clear line; a download carries digests of all that is in it, and the audit
trail's head.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from PIL import Image as PillowImage

from linegate.images import decode_image, encode_png
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.message import utc_now

SHOWN_IN_BROWSER: Final = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".bmp": "image/bmp"}
_PNG: Final = b"\x89PNG\r\n\x1a\n"


class PictureGoneError(Exception):
    """A picture that its verdict names and that is not there any more, or was never kept."""


def converted(evidence: EvidenceFolder, name: str, max_pixels: int) -> bytes:
    """Return a picture that browsers do not draw as PNG.

    Raises:
        PictureGoneError: it has been pruned.
        ImageError: it is torn, or no picture.
    """
    try:
        data = evidence.path_of(name).read_bytes()
    except FileNotFoundError:
        raise PictureGoneError(f"picture {name[:16]}… has been pruned: its retention time is over") from None
    image, pixel_format, _ = decode_image(data, max_pixels=max_pixels)
    return encode_png(image, pixel_format)


def checked_mask(data: bytes, size_wh: tuple[int, int], what: str) -> bytes:
    """Return a painted mask as a PNG of 0 and 255, if it is a grey PNG of the frame's size.

    Its header is read before a pixel is decoded.

    Raises:
        ValueError: it is not; the text says what it is.
    """
    width, height = size_wh
    if len(data) < 33 or not data.startswith(_PNG) or data[12:16] != b"IHDR":
        raise ValueError(f"{what}: no PNG, got {len(data)} bytes: send the mask as an 8-bit grey PNG")
    own = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if own != (width, height):
        raise ValueError(f"{what}: the mask is {own[0]} × {own[1]}, its picture {width} × {height}: draw it at that size")
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8:
        raise ValueError(f"{what}: the PNG is damaged or not of 8 bits: send it again")
    # A canvas gives RGBA: what is painted is what is not transparent and not black.
    if pixels.ndim == 3:
        grey = pixels[..., :3].max(axis=2)
        pixels = np.where(pixels[..., 3] > 127, grey, 0) if pixels.shape[2] == 4 else grey
    made = np.where(pixels > 127, np.uint8(255), np.uint8(0))
    done, png = cv2.imencode(".png", made)
    assert done
    return png.tobytes()


def evidence_zip(
    evidence: EvidenceFolder,
    message: Mapping[str, Any],
    decisions: list[dict[str, Any]],
    drawings: Mapping[str, bytes],
    heat_maps: Mapping[str, bytes],
    audit: list[dict[str, Any]],
    head: tuple[int, str],
    *,
    by: str,
) -> Iterator[bytes]:
    """Yield a zip, piece by piece, of all that is known of a part: pictures, message, decisions, and SHA-256 of each file.

    A picture that has been pruned is named in `manifest.json`, with why it is missing. At most one picture is in memory.
    """
    buffer = _Outgoing()
    files: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, data: bytes, *, packed: bool = True) -> bytes:
            # A fixed time: the same part twice gives the same files.
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            archive.writestr(info, data)
            files.append({"name": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
            return buffer.take()

        for view in message["views"]:
            uri, said = view["image_uri"], view["image_sha256"]
            if uri is None:
                missing.append({"view": view["view"], "why": "its picture was not kept"})
                continue
            name = uri.rsplit("/", 1)[-1]
            try:
                data = evidence.path_of(name).read_bytes()
            except FileNotFoundError:
                missing.append({"view": view["view"], "why": "its picture has been pruned: its retention time is over"})
                continue
            if hashlib.sha256(data).hexdigest() != said:
                missing.append({"view": view["view"], "why": "its picture on disk was changed: its SHA-256 is another"})
                continue
            yield add(f"pictures/{_safe(view['view'])}-{name}", data, packed=False)
        for view_name, data in heat_maps.items():
            yield add(f"heat-maps/{_safe(view_name)}.png", data, packed=False)
        for drawing, data in drawings.items():
            yield add(f"masks/{_safe(drawing)}.png", data, packed=False)
        for name, content in (("message.json", message), ("decisions.json", decisions), ("audit.json", audit)):
            yield add(name, json.dumps(content, indent=2, ensure_ascii=False).encode())
        manifest = {
            "verdict_id": message["verdict_id"],
            "station": message["station"],
            "serial": message["part"]["serial"],
            "made_at": utc_now().isoformat(),
            "made_by": by,
            "audit_head": {"line": head[0], "digest": head[1]},
            "files": list(files),
            "missing": missing,
        }
        yield add("manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode())
        listed = "".join(f"{file['sha256']}  {file['name']}\n" for file in files)
        yield add("SHA256SUMS", listed.encode())
    yield buffer.take()


class _Outgoing(io.RawIOBase):
    """Collects what a zip writes until somebody takes it; a zip can be written without going back."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._waiting += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken


def _safe(name: str) -> str:
    """Return a view's name as part of a file name."""
    return "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in name).strip(".") or "view"


def picture_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of a picture file by its header, or None."""
    with contextlib.suppress(OSError, SyntaxError, ValueError), PillowImage.open(path) as picture:
        return picture.size
    return None
