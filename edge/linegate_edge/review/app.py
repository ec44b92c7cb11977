"""The station's HTTP application: routes, and nothing behind them.

Rules kept here: an error is one line of JSON, `{"error": "…"}`; nothing is loaded from elsewhere, which is why the
interactive documentation is off (it comes from a CDN) and `/openapi.json` is on; a name in an address is only ever looked
up in the store, never joined to a path before it was found there. Who may ask is left to `guard` and
`access.gate`, judging to `frames`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

from fastapi import FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from linegate import __version__
from linegate.errors import LinegateError
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.line import Line
from linegate_edge.live import Live
from linegate_edge.message import VerdictMessage
from linegate_edge.metrics import Metrics
from linegate_edge.review.access.access import Access
from linegate_edge.review.access.gate import Gate
from linegate_edge.review.access.oidc_routes import add_oidc
from linegate_edge.review.access.openapi import describe_access
from linegate_edge.review.access.routes import add_access
from linegate_edge.review.answers import FrameAnswer, HealthAnswer, LiveState, errors
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.frames import FrameFields, FrameIntake
from linegate_edge.review.guard import Guard
from linegate_edge.review.live_feed import LiveFeed
from linegate_edge.review.part_routes import add_parts
from linegate_edge.review.pictures import SHOWN_IN_BROWSER
from linegate_edge.review.quality.routes import add_quality
from linegate_edge.review.queue_routes import add_queue
from linegate_edge.review.records import add_verdict_pages
from linegate_edge.review.reviews import Reviews
from linegate_edge.review.static import add_pages
from linegate_edge.settings import StationSettings
from linegate_edge.store import StoreReader

_STATE_EVERY_S: Final = 0.1
_HEARTBEAT_EVERY_S: Final = 1.0
_EVIDENCE_NAME: Final = re.compile(r"[0-9a-f]{64}\.[a-z]{3,4}")
_SHOWN_ERRORS: Final = 3
_UNREADABLE: Final = "There was an error parsing the body"  # FastAPI's words for bytes that are no text
_SECRETS: Final = frozenset({"password", "current", "new"})  # an answer may be logged
_CHUNK_BYTES: Final = 4 * 2**20
Responses = dict[int | str, dict[str, Any]]
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}

_DESCRIPTION: Final = """\
One inspection station of Linegate: frames in, verdicts out. Every error is `{"error": "one line"}`. The verdict message
is the same as on MQTT.
"""


def create_app(
    *,
    live: Live,
    line: Line,
    metrics: Metrics,
    store_path: Path,
    evidence: EvidenceFolder,
    max_pixels: int,
    max_upload_bytes: int,
    ready: Callable[[], str | None],
    settings: StationSettings,
    reviews: Reviews,
    class_names: Callable[[], list[str]] = list,
    access: Access,
    host_names: Collection[str] = (),
    wait_s: float = 10.0,
) -> FastAPI:
    """Return the HTTP application of a station.

    `ready` says in one line why the station is not ready, or None; `host_names` are names under which browsers reach it
    beside its addresses; `wait_s` is how long `POST /frames` waits for a verdict; `access` decides who may ask for what,
    `reviews` keeps what people do. Setting the event
    `app.state.stopping` ends the event streams and turns new frames away.
    """
    stopping = threading.Event()
    intake = FrameIntake(line, live.boot_id, stopping, max_pixels=max_pixels, max_upload_bytes=max_upload_bytes, wait_s=wait_s)
    feed = LiveFeed(live, ready)

    app = FastAPI(title="Linegate station", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.stopping = stopping
    app.add_middleware(Gate, access=access)
    app.add_middleware(Guard, host_names=host_names, on_refusal=access.note_browser)
    _add_error_handlers(app)
    add_access(app, access)
    add_oidc(app, access)
    _add_frames(app, intake, max_upload_bytes)
    _add_live(app, feed, stopping)
    add_verdict_pages(app, store_path)
    _add_records(app, store_path, reviews.database, evidence)
    _add_health(app, line, metrics, ready)
    add_parts(app, reviews.database, reviews.trail, evidence, max_pixels=max_pixels)
    add_queue(app, reviews.database, reviews.trail, evidence, class_names)
    add_quality(app, reviews.database, settings)
    add_pages(app)
    describe_access(app)
    return app


def _file(media_type: str) -> Responses:
    return {200: {"content": {media_type: _BINARY}}}


def _add_frames(app: FastAPI, intake: FrameIntake, max_upload_bytes: int) -> None:
    form_fields = FrameFields.model_json_schema()["properties"]
    form = {"type": "object", "required": ["image"], "properties": {"image": _BINARY["schema"]} | form_fields}
    body = {
        "required": True,
        "description": f"The picture, 8-bit grey or RGB (PNG, JPEG, BMP, TIFF, WebP, PNM); at most {max_upload_bytes:,} bytes",
        "content": {"multipart/form-data": {"schema": form}, "image/*": _BINARY, "application/octet-stream": _BINARY},
    }

    @app.post(
        "/frames",
        tags=["frames"],
        summary="Judge a part",
        responses=errors(400, 403, 408, 415, 422, 503)
        | {413: {"model": FrameAnswer, "description": "The picture is too large: the part is undecided"}},
        openapi_extra={"requestBody": body},
    )
    async def post_frame(
        request: Request,
        response: Response,
        query: Annotated[FrameFields, Query()],
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200, pattern=r"^[\x21-\x7e ]+$")] = None,
    ) -> FrameAnswer:
        """Send the picture of one part, raw or as the form field `image`; the answer is its verdict, already stored.

        A picture that cannot be judged is answered as well, as `undecided` with the reason. With `Idempotency-Key` a
        frame may be sent again: the answer is then the verdict of the first time, with `repeated`. After 503 the frame
        may or may not have been taken; the text says which.
        """
        response.status_code, answer = await intake.take(request, query, idempotency_key)
        if response.status_code == 413:
            response.headers["Connection"] = "close"  # or the server would read the rest of it, however long
        return answer


def _add_live(app: FastAPI, feed: LiveFeed, stopping: threading.Event) -> None:
    @app.get("/live/events", tags=["live"], response_class=EventSourceResponse, summary="The state as it changes")
    async def get_events() -> AsyncIterator[ServerSentEvent]:
        """Follow the station: an event `state` (a `LiveState`) at each change, at most ten a second, and `heartbeat`."""
        sent, sent_at = "", 0.0
        while not stopping.is_set():
            state, now = feed.state(), time.monotonic()
            if state is not sent:
                yield ServerSentEvent(event="state", raw_data=state, retry=1000)
                sent, sent_at = state, now
            elif now - sent_at >= _HEARTBEAT_EVERY_S:
                yield ServerSentEvent(event="heartbeat", raw_data="{}")
                sent_at = now
            await asyncio.sleep(_STATE_EVERY_S)

    @app.get("/live/state", tags=["live"], response_model=LiveState, summary="The state once")
    async def get_state() -> Response:
        """Return what the station shows of itself this moment."""
        return Response(feed.state(), media_type="application/json")

    @app.get(
        "/live/last.jpg",
        tags=["live"],
        response_class=Response,
        responses=_file("image/jpeg") | errors(404, 422),
        summary="The last part's picture",
    )
    def get_overlay(sequence: Annotated[int | None, Query(ge=1)] = None) -> Response:
        """Return the last part with heat map, regions and a border in the verdict's colour.

        `sequence` asks for one of the last few parts, so that a picture cannot be shown beside another part's verdict.
        """
        try:
            picture = feed.overlay(sequence)
        except LookupError as error:
            raise HTTPException(404, str(error.args[0])) from None
        return Response(picture, media_type="image/jpeg")


def _add_records(app: FastAPI, store_path: Path, database: ReviewDatabase, evidence: EvidenceFolder) -> None:
    @app.get(
        "/verdicts/{verdict_id}",
        tags=["records"],
        response_model=VerdictMessage,
        responses=errors(404),
        summary="A verdict",
    )
    def get_verdict(verdict_id: str) -> Response:
        """Return the verdict message of a part, as the store keeps it (`published` is null there)."""
        with contextlib.closing(StoreReader(store_path)) as reader:
            message = reader.verdict(verdict_id)
        if message is None:
            raise HTTPException(404, f"this station has no verdict '{verdict_id[:64]}'")
        # As it was stored: an older release may have written fewer fields.
        return JSONResponse(message)

    @app.get(
        "/evidence/{name}",
        tags=["records"],
        response_class=Response,
        responses=_file("*/*") | errors(404),
        summary="The picture of a part",
    )
    def get_evidence(name: str) -> Response:
        """Return a picture kept as evidence, the very bytes that the camera sent, by the name in `image_uri`."""
        media_type = None
        if _EVIDENCE_NAME.fullmatch(name):
            with database.look() as db:
                row = db.execute("SELECT media_type FROM line.evidence WHERE name = ? LIMIT 1", (name,)).fetchone()
            media_type = None if row is None else str(row[0])
        if media_type is None:
            raise HTTPException(404, f"no evidence '{name[:70]}': it was never kept here, or its retention time is over")
        try:
            file = evidence.path_of(name).open("rb")
        except FileNotFoundError:
            raise HTTPException(404, f"evidence '{name}' has been pruned: its retention time is over") from None
        size = file.seek(0, 2)
        file.seek(0)
        disposition = "inline" if media_type in SHOWN_IN_BROWSER.values() else "attachment"
        headers = {
            "Content-Length": str(size),
            "Content-Disposition": f'{disposition}; filename="{name}"',
            "Cache-Control": "private, max-age=31536000, immutable",  # the name is the digest of the bytes
        }
        if size > _CHUNK_BYTES:
            return StreamingResponse(_chunks(file), media_type=media_type, headers=headers)
        with file:  # at once: each chunk of a stream costs another turn on a thread
            return Response(file.read(), media_type=media_type, headers=headers)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _add_health(app: FastAPI, line: Line, metrics: Metrics, ready: Callable[[], str | None]) -> None:
    @app.get("/metrics", tags=["health"], response_class=Response, summary="Metrics for Prometheus")
    def get_metrics() -> Response:
        """Return all metrics in Prometheus' text format."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    health: Responses = {503: {"model": HealthAnswer}}

    @app.get("/healthz", tags=["health"], responses=health, summary="Is it alive?")
    def get_health(response: Response) -> HealthAnswer:
        """Say whether all threads of the line run; 503 asks the service manager for a restart."""
        return _health(response, None if line.alive else "a thread of the line has ended: restart the station")

    @app.get("/readyz", tags=["health"], responses=health, summary="Can it judge parts?")
    def get_ready(response: Response) -> HealthAnswer:
        """Say whether the station can judge parts now, and if not, why."""
        return _health(response, ready())


def _health(response: Response, reason: str | None) -> HealthAnswer:
    response.status_code = 200 if reason is None else 503
    return HealthAnswer(ok=reason is None, reason=reason)


def _add_error_handlers(app: FastAPI) -> None:
    def answer(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": text}, status)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        text = str(error.detail)
        if error.status_code == 404 and text == "Not Found":
            text = f"nothing here at {request.url.path[:128]}: see /openapi.json"
        elif error.status_code == 405:
            text = f"{request.method} is not possible at {request.url.path[:128]}: see /openapi.json"
        elif error.status_code == 400 and text == _UNREADABLE:
            text = "the body cannot be read: send JSON in UTF-8"
        response = answer(error.status_code, text)
        response.headers.update(error.headers or {})
        return response

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        known = _parameters(request)
        details = error.errors()
        more = f"; and {len(details) - _SHOWN_ERRORS} more" if len(details) > _SHOWN_ERRORS else ""
        return answer(422, "; ".join(_describe(detail, known) for detail in details[:_SHOWN_ERRORS]) + more)

    async def on_linegate_error(request: Request, error: Exception) -> Response:
        return answer(503, str(error))

    app.add_exception_handler(StarletteHTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(LinegateError, on_linegate_error)


def _parameters(request: Request) -> list[str]:
    """Return the names of the parameters that the route of a request knows."""
    names: list[str] = []
    for field in request.scope["route"].dependant.query_params:
        kind = field.field_info.annotation
        is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
        names += kind.model_fields if is_model else [field.alias]
    return names


def _describe(detail: dict[str, Any], known: Collection[str]) -> str:
    place, *steps = (str(step) for step in detail["loc"])
    name = ".".join(steps) or place
    if detail["type"] == "extra_forbidden":
        text = f"unknown {'parameter' if place == 'query' else 'field'} '{name[:64]}'"
        return f"{text}: known are {', '.join(known)}" if known else f"{text}: see /openapi.json"
    message = str(detail["msg"])
    text = f"{place} parameter '{name[:64]}': {message[:1].lower()}{message[1:]}"
    return text if name in _SECRETS else f"{text}, got {_shortly(detail['input'])}"


def _shortly(value: object) -> str:
    # Of something large not even the text is made.
    return repr(value)[:80] if isinstance(value, str | int | float | bool | None) else type(value).__name__
