"""What the HTTP side answers, as types: the source of `/openapi.json`.

Rules kept here: a field that is not known is null, never left out; the verdict itself is `VerdictMessage`, the same as on
MQTT.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from linegate.stages import Decision, Reason
from linegate_edge.message import VerdictMessage

ERROR_SCHEMA: Final = "#/components/schemas/ErrorAnswer"
"""Where the document has `ErrorAnswer`, for what FastAPI does not write itself."""

Share = Annotated[float, Field(ge=0, le=1)]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route for its OpenAPI."""
    return {status: {"model": ErrorAnswer} for status in sorted(set(statuses))}


def people_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route under `/api/v1`: those that all of them have, and its own."""
    return errors(401, 403, 422, 503, *statuses)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorAnswer(_Answer):
    """What went wrong, in one line for a person."""

    error: str


class FrameAnswer(_Answer):
    """The verdict of a part that came by `POST /frames`; it is in the store already.

    `repeated` says that the idempotency key was known, and that this is the verdict of the first time.
    """

    verdict_id: str
    sequence: int
    serial: str
    decision: Decision
    reason: Reason
    reason_text: str
    score: float | None
    threshold: float | None
    latency_ms: dict[str, float]
    repeated: bool


class VerdictPage(_Answer):
    """A page of verdicts; `next` is the cursor of the page after it, null where there is none."""

    items: tuple[VerdictMessage, ...]
    next: str | None


class BrokerAnswer(_Answer):
    """What the publisher knows of its broker; `text` is one line for people."""

    connected: bool
    text: str
    no_subscriber: bool


class LatencyAnswer(_Answer):
    """Milliseconds from capture to verdict, over the last parts."""

    p50: float
    p99: float


class RecentPart(_Answer):
    """A part of the strip of last verdicts."""

    sequence: int
    verdict_id: str
    serial: str
    decision: Decision


class LiveState(_Answer):
    """The station this moment; counters since its start.

    `overlay_uri` is the picture of the last part, null where it cannot be shown; `line_stop` says why the line must
    stop, null where it may run; `trouble` why the station is not ready, null where it is.
    """

    version: int
    station: str
    boot_id: str
    package: str
    provider: str
    note: str
    parts: int
    passed: int
    failed: int
    undecided: int
    first_pass_yield: Share | None
    latency_ms: LatencyAnswer | None
    published: int
    broker: BrokerAnswer
    line_stop: str | None
    last: VerdictMessage | None
    recent: tuple[RecentPart, ...] = ()
    overlay_uri: str | None = None
    trouble: str | None = None


class HealthAnswer(_Answer):
    """Whether the station works; `reason` says why not."""

    ok: bool
    reason: str | None = None
