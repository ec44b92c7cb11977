"""What travels through the station around the core's stages: Capture → Recorded.

Rules kept here: frozen, no behaviour beyond a derived value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from linegate.stages import Frame, FrameFault, Part, Prediction, Verdict


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """A part in front of the camera: who it is, and its frame or why there is none.

    `origin` names the picture for good (a file's name and time, a client's idempotency key): a picture whose origin is
    already in the store is not judged a second time.
    """

    part: Part
    item: Frame | FrameFault
    origin: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trigger:
    """The event that says "a part is here"; `triggered_at` is aware UTC.

    `origin` names the event for good, as with `Capture`; `encoder` is the conveyor's count; `on_accepted` is called, from the
    writer's thread, once the trigger is journalled: from then on it gets its verdict even if the station is killed.
    """

    part: Part
    triggered_at: datetime
    origin: str | None = None
    encoder: int | None = None
    on_accepted: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """A stored picture: SHA-256 of its bytes, file name in the evidence folder, media type and size."""

    sha256: str
    name: str
    media_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A part with its verdict, not yet committed."""

    capture: Capture
    verdict_id: str
    verdict: Verdict
    prediction: Prediction | None
    evidence: Evidence | None
    decided_at: datetime
    latency_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A part whose verdict is in the store: what happens after this can be done again, but not undone.

    `text` is the verdict message as JSON, without its time of publication; `repeated` says that the origin was known and
    this is the verdict of the first time.
    """

    sequence: int
    verdict_id: str
    text: str
    repeated: bool = False

    @property
    def message(self) -> dict[str, Any]:
        """The verdict message as a JSON object."""
        message: dict[str, Any] = json.loads(self.text)
        return message
