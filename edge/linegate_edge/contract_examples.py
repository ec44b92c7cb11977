"""One message of each kind as it goes over the wire, for the documents of the contract.

Rules kept here: each is made by the type it is an example of, so an example that its type would refuse cannot be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from linegate.stages import Decision, Reason
from linegate_edge.commands import COMMANDS, Answer, AnswerReason, Confirmation
from linegate_edge.message import (
    SCHEMA_VERSION,
    MessagePart,
    MessageProvenance,
    MessageRegion,
    MessageTime,
    MessageView,
    StateMessage,
    VerdictMessage,
)

_STATION: Final = "acme/graz/press/line-1/flange"
_BOOT_ID: Final = "0b2f5a7e-6f0e-4b53-9a8f-2f6f8a1f3f10"
_VERDICT_ID: Final = "6c1c5d44-3f6b-4a57-8f0a-7e1d9a2b4c33"
_AT: Final = datetime(2026, 3, 2, 6, 30, 15, 250_000, tzinfo=UTC)
_PACKAGE, _DIGEST, _RECIPE_DIGEST = "flange_top@1.4.0", "5d" * 32, "c3" * 32
_TEXT: Final = "score 4.71 reaches the threshold 4.2"


def _verdict() -> VerdictMessage:
    region = MessageRegion(
        defect_class="scratch", plant_code="K-0412", score=4.71, box_xyxy=(412, 96, 478, 131), area_px=1240, zone=None
    )
    view = MessageView(
        camera="cam-top",
        view="top",
        frame_id="cam-top-81723",
        image_uri=f"/evidence/{'9e' * 32}.png",
        image_sha256="9e" * 32,
        decision=Decision.FAIL,
        reason=Reason.ABOVE_THRESHOLD,
        reason_text=_TEXT,
        score=4.71,
        threshold=4.2,
        package=_PACKAGE,
        package_digest=_DIGEST,
        regions=(region,),
    )
    return VerdictMessage(
        schema_version=SCHEMA_VERSION,
        verdict_id=_VERDICT_ID,
        station=_STATION,
        boot_id=_BOOT_ID,
        sequence=81_204,
        time=MessageTime(
            triggered=_AT,
            captured=_AT + timedelta(milliseconds=4),
            decided=_AT + timedelta(milliseconds=19),
            published=_AT + timedelta(milliseconds=22),
            clock_source="system",
        ),
        part=MessagePart(
            serial="A-17",
            serial_source="command",
            type="FL-A",
            order="4711",
            batch="B-9",
            supplier_lot="L-2203",
            carrier=None,
            attempt=1,
        ),
        decision=Decision.FAIL,
        reason=Reason.ABOVE_THRESHOLD,
        reason_text=_TEXT,
        mode="production",
        supersedes=None,
        views=(view,),
        provenance=MessageProvenance(
            recipe="flange",
            recipe_digest=_RECIPE_DIGEST,
            package="flange_top",
            package_version="1.4.0",
            package_digest=_DIGEST,
            threshold_version="station:4.2/0.3",
            software_version="0.1.0",
        ),
        latency_ms={"queue": 0.4, "prepare": 1.1, "inference": 9.8, "regions": 0.6, "evidence": 2.0, "total": 15.0},
    )


def _state() -> StateMessage:
    return StateMessage(
        schema_version=SCHEMA_VERSION,
        station=_STATION,
        boot_id=_BOOT_ID,
        state="online",
        at=_AT,
        software_version="0.1.0",
        package=_PACKAGE,
        recipe="flange",
        recipe_digest=_RECIPE_DIGEST,
        mode="production",
        running=True,
        triggers=1204,
        verdicts=1204,
        last_sequence=81_204,
        outbox_pending=3,
        no_subscriber=False,
        line_stop=None,
    )


def _answers() -> list[BaseModel]:
    accepted = Answer(
        station=_STATION,
        boot_id=_BOOT_ID,
        command="trigger",
        command_id="order-4711-piece-17",
        ok=True,
        reason=AnswerReason.ACCEPTED,
        reason_text="the part gets its verdict",
        answered=_AT + timedelta(milliseconds=3),
        verdict_id=_VERDICT_ID,
    )
    refused = Answer(
        station=_STATION,
        boot_id=_BOOT_ID,
        command="recipe",
        command_id="change-over-12",
        ok=False,
        reason=AnswerReason.UNKNOWN_RECIPE,
        reason_text="no recipe 'flanges': this station has cover, flange",
        answered=_AT,
    )
    return [accepted, refused]


_FIELDS: Final[Mapping[str, dict[str, Any]]] = {
    "trigger": {
        "command_id": "order-4711-piece-17",
        "serial": "A-17",
        "part_type": "FL-A",
        "order": "4711",
        "batch": "B-9",
        "supplier_lot": "L-2203",
    },
    "recipe": {"command_id": "change-over-12", "recipe": "flange"},
    "start": {"command_id": "shift-2-start"},
    "stop": {"command_id": "shift-1-stop"},
    "mode": {"command_id": "challenge-2026-03-02", "mode": "challenge"},
    "replay": {"command_id": "replay-after-outage", "first": 81_000, "last": 81_204},
    "confirm": {"command_id": "confirm-81204", "confirm": {"sequences": [{"first": 81_190, "last": 81_204}]}},
}


def _json(*messages: BaseModel) -> list[dict[str, Any]]:
    return [message.model_dump(mode="json") for message in messages]


def _command(name: str) -> dict[str, Any]:
    message = COMMANDS[name].model_validate({"schema_version": SCHEMA_VERSION, "command": name, **_FIELDS[name]})
    return message.model_dump(mode="json", exclude_unset=True)


EXAMPLES: Final[Mapping[str, list[dict[str, Any]]]] = {
    "verdict": _json(_verdict()),
    "state": _json(_state()),
    "answer": _json(*_answers()),
    "confirmation": [
        Confirmation.model_validate(
            {"schema_version": SCHEMA_VERSION, "confirm": {"sequences": [{"first": 81_190, "last": 81_204}]}}
        ).model_dump(mode="json", exclude_unset=True)
    ],
    **{name: [_command(name)] for name in COMMANDS},
}
"""By the message's name, or the command's."""
