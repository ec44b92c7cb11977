"""The body of `POST /frames` → the picture's bytes and the fields beside it.

Rules kept here: no more of a picture is kept in memory than the limit allows; fields that came before the limit was passed
are kept, for the part exists all the same; a body that cannot be understood is refused in one line (400, 408, 415, 422).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fastapi import HTTPException, Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

IMAGE_FIELD: Final = "image"
_UPLOAD_TIMEOUT_S: Final = 120.0
_MAX_FIELD_BYTES: Final = 4096
_MAX_FORM_OVERHEAD_BYTES: Final = 64 * 1024
_MAX_FORM_FIELDS: Final = 32
_DISCARD_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Upload:
    """What came: `data` is the picture as it was sent, None where it passed the limit."""

    data: bytes | None
    fields: dict[str, str] = field(default_factory=dict)


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """Return the picture and the fields of a multipart form or of a raw body.

    Raises:
        HTTPException: the body is of no known type, malformed, without a picture, or too slow in coming.
        ClientDisconnect: the sender went away in the middle.
    """
    content_type = request.headers.get("content-type", "")
    media_type, options = parse_options_header(content_type)
    try:
        async with asyncio.timeout(_UPLOAD_TIMEOUT_S):
            if media_type == b"multipart/form-data":
                return await _read_form(request, options.get(b"boundary", b""), max_bytes)
            if not content_type or media_type == b"application/octet-stream" or media_type.startswith(b"image/"):
                return await _read_raw(request, max_bytes)
    except TimeoutError:
        raise HTTPException(408, f"the picture did not arrive within {_UPLOAD_TIMEOUT_S:g} s: send it again") from None
    known = "image/*, application/octet-stream or multipart/form-data"
    raise HTTPException(415, f"Content-Type '{content_type[:128]}' is not known here: send {known}")


async def _read_raw(request: Request, max_bytes: int) -> Upload:
    chunks = request.stream()
    data = bytearray()
    announced = request.headers.get("content-length", "")
    too_large = announced.isdecimal() and int(announced) > max_bytes
    while not too_large and (chunk := await anext(chunks, None)) is not None:
        data += chunk
        too_large = len(data) > max_bytes
    if not too_large:
        return Upload(bytes(data))
    del data
    await _discard(chunks, max_bytes)
    return Upload(None)


async def _read_form(request: Request, boundary: bytes, max_bytes: int) -> Upload:
    if not boundary:
        raise HTTPException(400, "the multipart form is malformed: its Content-Type names no boundary")
    form = _Form(max_bytes)
    chunks = request.stream()
    received = 0
    try:
        parser = MultipartParser(boundary, form.callbacks())
        while not form.too_large and (chunk := await anext(chunks, None)) is not None:
            received += len(chunk)
            if chunk:
                parser.write(chunk)
            if not form.too_large and received - len(form.image or b"") > _MAX_FORM_OVERHEAD_BYTES:
                raise HTTPException(400, f"the form has more than {_MAX_FORM_OVERHEAD_BYTES} bytes beside the picture")
        if form.too_large:
            await _discard(chunks, max_bytes)
            return Upload(None, form.fields)
        parser.finalize()
    except MultipartParseError as error:
        raise HTTPException(400, f"the multipart form is malformed: {error}") from error
    if not form.ended:
        raise HTTPException(400, "the multipart form is malformed: it ends before its closing boundary")
    if form.image is None:
        raise HTTPException(422, f"field '{IMAGE_FIELD}' is missing: send the picture in a field of this name")
    return Upload(bytes(form.image), form.fields)


async def _discard(chunks: AsyncIterator[bytes], budget_bytes: int) -> None:
    """Read on a little and keep nothing.

    A sender that is still writing when the connection closes often loses the answer with it; past the budget it does.
    """
    try:
        async with asyncio.timeout(_DISCARD_TIMEOUT_S):
            async for chunk in chunks:
                budget_bytes -= len(chunk)
                if budget_bytes < 0:
                    return
    except TimeoutError:
        return


class _Form:
    """Gathers what the parser finds; the picture only up to the limit."""

    def __init__(self, max_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.image: bytearray | None = None
        self.too_large = False
        self.ended = False
        self._max_bytes = max_bytes
        self._header_name, self._header_value, self._disposition = bytearray(), bytearray(), b""
        self._name, self._value = "", bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._name, self._value = b"", "", bytearray()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if not self._name:
            raise HTTPException(400, "the multipart form is malformed: a field has no name")
        if self._name in self.fields or (self._name == IMAGE_FIELD and self.image is not None):
            raise HTTPException(422, f"field '{self._name[:64]}' comes twice: send one picture and one of each field")
        if len(self.fields) >= _MAX_FORM_FIELDS:
            raise HTTPException(422, f"the form has more than {_MAX_FORM_FIELDS} fields")
        if self._name == IMAGE_FIELD:
            self.image = bytearray()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == IMAGE_FIELD and self.image is not None:
            if self.too_large or len(self.image) + end - start > self._max_bytes:
                self.too_large = True
                self.image.clear()
                return
            self.image += data[start:end]
        elif len(self._value) + end - start > _MAX_FIELD_BYTES:
            raise HTTPException(422, f"field '{self._name[:64]}' has more than {_MAX_FIELD_BYTES} bytes")
        else:
            self._value += data[start:end]

    def _end_part(self) -> None:
        if self._name != IMAGE_FIELD:
            try:
                self.fields[self._name] = self._value.decode()
            except UnicodeDecodeError:
                raise HTTPException(422, f"field '{self._name[:64]}' is not UTF-8") from None

    def _end(self) -> None:
        self.ended = True
