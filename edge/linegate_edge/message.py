"""The verdict message and the state message: contract 2 of the design, schema version 1.

Rules kept here: every field is always there, null where it is not known; a field may be added within a schema version,
none is renamed or removed; `verdict_id` is the idempotency key. `edge/README.md` documents every field, and a test
holds it to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from linegate.stages import Decision, Reason, ViewVerdict
from linegate_edge.records import Judged, Look, Mode

if TYPE_CHECKING:
    from linegate_edge.recipes import LoadedRecipe

SCHEMA_VERSION = "1.0"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MessageTime(_Message):
    """When things happened, UTC; `triggered` is null where frames come of themselves, `published` is set at each attempt."""

    triggered: datetime | None
    captured: datetime
    decided: datetime
    published: datetime | None
    clock_source: Literal["system"]


class MessagePart(_Message):
    """Which piece it was, as far as the station was told."""

    serial: str
    serial_source: str
    type: str | None
    order: str | None
    batch: str | None
    supplier_lot: str | None
    carrier: str | None
    attempt: int


class MessageRegion(_Message):
    """A place that looks defective; `box_xyxy` and `area_px` in pixels of the camera's frame."""

    defect_class: str
    plant_code: str | None
    score: float
    box_xyxy: tuple[int, int, int, int]
    area_px: int
    zone: str | None


class MessageView(_Message):
    """One camera's look; `image_uri` is a path on the station's HTTP address, `package` what judged it, as name@version."""

    camera: str
    view: str
    frame_id: str
    image_uri: str | None
    image_sha256: str | None
    decision: Decision
    reason: Reason
    reason_text: str
    score: float | None
    threshold: float | None
    package: str | None
    package_digest: str | None
    regions: tuple[MessageRegion, ...]


class MessageProvenance(_Message):
    """What judged it, so that the verdict can be explained a year later; the package is that of the view which decided."""

    recipe: str
    recipe_digest: str
    package: str
    package_version: str
    package_digest: str
    threshold_version: str
    software_version: str


class VerdictMessage(_Message):
    """What the MES receives of each part."""

    schema_version: str
    verdict_id: str
    station: str
    boot_id: str
    sequence: int
    time: MessageTime
    part: MessagePart
    decision: Decision
    reason: Reason
    reason_text: str
    mode: Mode
    supersedes: str | None
    views: tuple[MessageView, ...]
    provenance: MessageProvenance
    latency_ms: dict[str, float]


class StateMessage(_Message):
    """What the station says of itself, retained, and by its last will when it dies."""

    schema_version: str
    station: str
    boot_id: str
    state: Literal["online", "stopped", "lost"]
    at: datetime
    software_version: str
    package: str | None
    recipe: str
    recipe_digest: str
    mode: Mode
    running: bool
    triggers: int
    verdicts: int
    last_sequence: int
    outbox_pending: int
    no_subscriber: bool
    line_stop: str | None


def topics(station_topic: str) -> dict[str, str]:
    """Return the topics of a station by their role: verdict, state, command, acknowledgement."""
    base = f"{station_topic}/vision/v1"
    return {"verdict": f"{base}/verdict", "state": f"{base}/state", "command": f"{base}/cmd", "answer": f"{base}/ack"}


def verdict_message(
    judged: Judged, sequence: int, *, station: str, boot_id: str, plant_codes: Mapping[str, str] = MappingProxyType({})
) -> VerdictMessage:
    """Return the message of a part, as the store keeps it: without its time of publication.

    `plant_codes` are the plant's own codes by defect class.
    """
    part, verdict = judged.part, judged.verdict
    deciding = next((view.view for view in verdict.views if view.reason_text == verdict.reason_text), None)
    looks = {(look.item.view, look.item.frame_id): look for look in judged.looks}
    return VerdictMessage(
        schema_version=SCHEMA_VERSION,
        verdict_id=judged.verdict_id,
        station=station,
        boot_id=boot_id,
        sequence=sequence,
        time=MessageTime(
            triggered=judged.triggered_at,
            captured=judged.captured_at,
            decided=judged.decided_at,
            published=None,
            clock_source="system",
        ),
        part=MessagePart(
            serial=part.serial,
            serial_source=part.serial_source,
            type=part.part_type,
            order=part.order,
            batch=part.batch,
            supplier_lot=part.supplier_lot,
            carrier=part.carrier,
            attempt=part.attempt,
        ),
        decision=verdict.decision,
        reason=verdict.reason,
        reason_text=verdict.reason_text,
        mode=judged.mode,
        supersedes=None,
        views=tuple(
            _message_view(view, looks.get((view.view, view.frame_id)), judged.recipe, plant_codes) for view in verdict.views
        ),
        provenance=judged.recipe.provenance(deciding),
        latency_ms=dict(judged.latency_ms),
    )


def _message_view(view: ViewVerdict, look: Look | None, recipe: LoadedRecipe, plant_codes: Mapping[str, str]) -> MessageView:
    evidence = None if look is None else look.evidence
    package = recipe.views[view.view].inspector.package if view.view in recipe.views else None
    return MessageView(
        camera=view.camera,
        view=view.view,
        frame_id=view.frame_id,
        image_uri=None if evidence is None else f"/evidence/{evidence.name}",
        image_sha256=None if evidence is None else evidence.sha256,
        decision=view.decision,
        reason=view.reason,
        reason_text=view.reason_text,
        score=view.score,
        threshold=view.threshold,
        package=None if package is None else package.reference,
        package_digest=None if package is None else package.digest,
        regions=tuple(
            MessageRegion(
                defect_class=region.label,
                plant_code=plant_codes.get(region.label),
                score=region.score,
                box_xyxy=region.box_xyxy,
                area_px=region.area_px,
                zone=None,
            )
            for region in view.regions
        ),
    )


def with_published(text: str, moment: datetime) -> str:
    """Return a stored message's JSON with its time of publication.

    The key cannot occur inside a JSON string, where its quotes would be escaped, so the first occurrence is the field.
    """
    stamp = moment.isoformat().replace("+00:00", "Z")
    return text.replace('"published":null', f'"published":"{stamp}"', 1)


def utc_now() -> datetime:
    """Return the present moment as aware UTC."""
    return datetime.now(UTC)
