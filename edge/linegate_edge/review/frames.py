"""`POST /frames`: an upload → a part with its verdict.

Rules kept here: whoever gets a picture to this door has a part, so a picture that is empty, torn or too large is still
judged (undecided) and stored; nobody gets an answer before the verdict is committed; where the answer takes too long the
sender hears what is known and no more. The future of a verdict is never cancelled, for it belongs to the line.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import Annotated, Final
from uuid import uuid4

import anyio
import anyio.to_thread
from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from linegate.errors import StationError
from linegate.settings import describe
from linegate.stages import FrameFault, Part, Reason
from linegate_edge.line import Line
from linegate_edge.message import utc_now
from linegate_edge.records import Capture, Recorded
from linegate_edge.review.answers import FrameAnswer
from linegate_edge.review.upload import Upload, read_upload
from linegate_edge.setting_types import VIEW
from linegate_edge.sources.encoded import capture_from_bytes

log = logging.getLogger("linegate.http")
_MAX_IN_HAND: Final = 32
_STOP_GRACE_S: Final = 1.0
_POLL_S: Final = 0.1
_NO_CONTROL: Final = r"^[^\x00-\x1f\x7f]+$"

FieldText = Annotated[str, Field(min_length=1, max_length=128, pattern=_NO_CONTROL)]


class FrameFields(BaseModel):
    """What a sender may say of a frame, as query parameters or as form fields; form fields count first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    serial: FieldText | None = Field(default=None, description="The part's serial; without it a running one is given.")
    camera: FieldText = Field(default="http", description="Which camera took the picture.")
    view: FieldText = Field(default=VIEW, description="Which view of the recipe this is.")
    part_type: FieldText | None = None
    order: FieldText | None = None
    batch: FieldText | None = None
    supplier_lot: FieldText | None = Field(default=None, description="The lot in which its material was delivered.")
    carrier: FieldText | None = None
    attempt: int = Field(default=1, ge=1, le=1_000_000, description="Counts the tries to inspect this part, from 1.")


class FrameIntake:
    """Takes uploads to the line; one for a station.

    `wait_s` is how long a sender waits for its verdict, `stopping` tells that the station ends.
    """

    def __init__(
        self,
        line: Line,
        boot_id: str,
        stopping: threading.Event,
        *,
        max_pixels: int,
        max_upload_bytes: int,
        wait_s: float,
    ) -> None:
        self._line, self._boot_id, self._stopping = line, boot_id, stopping
        self._max_pixels, self._max_upload_bytes, self._wait_s = max_pixels, max_upload_bytes, wait_s
        self._numbers = itertools.count(1)
        # Uploads wait outside and unread when this many are in memory.
        self._in_hand = asyncio.Semaphore(_MAX_IN_HAND)
        self._decoders = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def take(self, request: Request, query: FrameFields, idempotency_key: str | None) -> tuple[int, FrameAnswer]:
        """Return status and answer for one frame: 200, or 413 with the verdict of a part whose picture was too large.

        Raises:
            HTTPException: the request is malformed, or there is no verdict within `wait_s`.
        """
        self._check_open()
        _refuse_repeated(request)
        captured_at = utc_now()
        try:
            async with asyncio.timeout(self._wait_s):
                await self._in_hand.acquire()
        except TimeoutError:
            text = f"{_MAX_IN_HAND} frames are in hand already, and this one was not taken: send it again later"
            raise HTTPException(503, text) from None
        try:
            upload = await read_upload(request, self._max_upload_bytes)
            fields = _merge(query, upload.fields)
            recorded = await self._judge(upload, fields, idempotency_key, captured_at)
        except ClientDisconnect:
            log.warning("a sender went away in the middle of its frame, which was not taken")
            raise HTTPException(400, "the upload ended before it was complete") from None
        finally:
            self._in_hand.release()
        return (200 if upload.data is not None else 413), _answer(recorded)

    def _check_open(self) -> None:
        if self._stopping.is_set():
            raise HTTPException(503, "the station is stopping, and the frame was not taken: send it again later")

    async def _judge(self, upload: Upload, fields: FrameFields, idempotency_key: str | None, captured_at: datetime) -> Recorded:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_s
        withdrawn = threading.Event()

        def hand_over() -> Future[Recorded] | None:
            capture = self._capture(upload, fields, idempotency_key, captured_at)
            return None if withdrawn.is_set() else self._line.submit(capture)

        try:
            async with asyncio.timeout_at(deadline):
                # Decoding and waiting for room in the queue share these threads: a full queue stops the decoding too.
                future = await anyio.to_thread.run_sync(hand_over, limiter=self._decoders, abandon_on_cancel=True)
        except TimeoutError:
            withdrawn.set()
            text = f"the line had no room within {self._wait_s:g} s; the frame may still be judged"
            raise HTTPException(503, f"{text}: send it again with the same Idempotency-Key to hear its verdict") from None
        except StationError as error:
            raise HTTPException(503, f"{error}: send the frame again later") from error
        assert future is not None  # only a request that was given up withdraws, and that one is gone
        return await self._wait(future, deadline)

    async def _wait(self, future: Future[Recorded], deadline: float) -> Recorded:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def wake(_: Future[Recorded]) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile, and nobody waits
                loop.call_soon_threadsafe(done.set)

        future.add_done_callback(wake)
        stopping = False
        while not done.is_set() and loop.time() < deadline:
            if self._stopping.is_set() and not stopping:
                stopping, deadline = True, min(deadline, loop.time() + _STOP_GRACE_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), _POLL_S)
        if not done.is_set():
            text = "the frame was taken, but its verdict is not stored yet and comes as soon as it can be"
            raise HTTPException(503, f"{text}: send it again with the same Idempotency-Key to hear it")
        try:
            return future.result()
        except StationError as error:
            raise HTTPException(503, str(error)) from error

    def _capture(self, upload: Upload, fields: FrameFields, idempotency_key: str | None, captured_at: datetime) -> Capture:
        number = next(self._numbers)
        part = Part(
            serial=fields.serial or f"{self._boot_id[:8]}-{number:06d}",
            serial_source="http" if fields.serial else "counter",
            part_type=fields.part_type,
            order=fields.order,
            batch=fields.batch,
            supplier_lot=fields.supplier_lot,
            carrier=fields.carrier,
            attempt=fields.attempt,
        )
        origin = None if idempotency_key is None else _origin(idempotency_key, fields, upload.data)
        if upload.data is None:
            mend = "raise [http] max_upload_mib or send a smaller picture"
            text = f"the picture has more than {self._max_upload_bytes:,} bytes: {mend}"
            camera, view = fields.camera, fields.view
            fault = FrameFault(Reason.IMAGE_TOO_LARGE, text, str(uuid4()), camera, view, number, captured_at)
            return Capture(part, fault, origin)
        return capture_from_bytes(
            upload.data,
            part=part,
            camera=fields.camera,
            view=fields.view,
            sequence=number,
            captured_at=captured_at,
            max_pixels=self._max_pixels,
            origin=origin,
        )


def _origin(idempotency_key: str, fields: FrameFields, data: bytes | None) -> str:
    """Return what makes two requests the same frame: the key, with what was said and shown.

    A controller that counts its keys from 1 again after a restart must get a new verdict for a new part, not an old pass.
    """
    content = hashlib.sha256(fields.model_dump_json().encode())
    content.update(b"too large" if data is None else data)
    return f"http:{idempotency_key}:{content.hexdigest()}"


def _refuse_repeated(request: Request) -> None:
    names = [name for name, _ in request.query_params.multi_items()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HTTPException(422, f"given more than once, so that nobody knows which counts: {', '.join(twice)}")


def _merge(query: FrameFields, form: Mapping[str, str]) -> FrameFields:
    if not form:
        return query
    try:
        return FrameFields.model_validate(query.model_dump(exclude_unset=True) | dict(form))
    except ValidationError as error:
        raise HTTPException(422, describe(error, FrameFields)) from error


def _answer(recorded: Recorded) -> FrameAnswer:
    message = recorded.message
    view = message["views"][0] if message["views"] else {"score": None, "threshold": None}
    return FrameAnswer(
        verdict_id=recorded.verdict_id,
        sequence=recorded.sequence,
        serial=message["part"]["serial"],
        decision=message["decision"],
        reason=message["reason"],
        reason_text=message["reason_text"],
        score=view["score"],
        threshold=view["threshold"],
        latency_ms=message["latency_ms"],
        repeated=recorded.repeated,
    )
