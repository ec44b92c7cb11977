"""The read API over verdicts: `GET /verdicts`, page by page.

Rules kept here: a page is what the store holds, word for word; a cursor is opaque, stays good for as long as the store, and
goes in the order it was made for. Which rows answer a question is left to `selection`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from fastapi import FastAPI, HTTPException, Query, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from linegate.stages import Decision
from linegate_edge.review.answers import ErrorAnswer, VerdictPage
from linegate_edge.selection import LAST, Selection
from linegate_edge.store import StoreReader


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("no such moment in UTC") from None


Moment = Annotated[AwareDatetime, AfterValidator(_utc)]
Order = Literal["newest", "oldest"]
_MAX_LIMIT: Final = 1000


class VerdictQuery(BaseModel):
    """Which verdicts, and which page of them; what is left out does not choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: str | None = Field(None, max_length=64, description="`next` of the page before")
    limit: int = Field(100, ge=1, le=_MAX_LIMIT, description="Verdicts a page")
    order: Order = Field("newest", description="Newest or oldest first, by sequence")
    serial: str | None = Field(None, min_length=1, max_length=256, description="Of this part")
    decision: Decision | None = Field(None, description="With this verdict")
    since: Moment | None = Field(None, description="Decided from this moment on, RFC 3339 with its zone")
    until: Moment | None = Field(None, description="Decided before this moment")


def add_verdict_pages(app: FastAPI, store_path: Path) -> None:
    """Add `GET /verdicts` to an application."""

    @app.get(
        "/verdicts",
        tags=["records"],
        response_model=VerdictPage,
        responses={status: {"model": ErrorAnswer} for status in (400, 422)},
        summary="Verdicts, page by page",
    )
    def get_verdicts(query: Annotated[VerdictQuery, Query()]) -> Response:
        """Return verdict messages as the store keeps them, and the cursor of the next page.

        Newest first, `next` is null on the last page. Oldest first it never is: asked again later, it gives what has come
        since, each verdict once.
        """
        newest_first = query.order == "newest"
        after = None if query.after is None else _sequence_of(query.after, query.order)
        selection = Selection(query.serial, query.decision, query.since, query.until)
        with contextlib.closing(StoreReader(store_path)) as reader:
            rows = reader.page(selection, newest_first=newest_first, after=after, limit=query.limit + newest_first)
        more = len(rows) > query.limit  # asked for one more than the page holds, to know
        rows = rows[: query.limit]
        following = rows[-1][0] if rows else after or 0
        cursor = None if newest_first and not more else cursor_of(following, query.order)
        # The messages are JSON already: read and written again they would cost more than all else here.
        body = f'{{"items":[{",".join(text for _, text in rows)}],"next":{json.dumps(cursor)}}}'
        return Response(body, media_type="application/json")


def cursor_of(sequence: int, order: Order) -> str:
    """Return the cursor of the page that follows this sequence number."""
    return base64.urlsafe_b64encode(f"{order}:{sequence}".encode()).decode().rstrip("=")


def _sequence_of(cursor: str, order: Order) -> int:
    """Return the sequence number that a cursor follows.

    Raises:
        HTTPException: the cursor is none of this station's, or of the other order.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        made_for, _, number = text.partition(":")
        sequence = int(number)
    except (binascii.Error, ValueError):
        made_for, sequence = "", -1
    if made_for not in ("newest", "oldest") or not 0 <= sequence < LAST or cursor_of(sequence, order) != cursor:
        other = f": it goes with order={made_for}" if made_for in ("newest", "oldest") and made_for != order else ""
        text = f"parameter 'after': expected the 'next' of a page of this order, got {cursor[:64]!r}"
        raise HTTPException(400, text + other)
    return sequence
