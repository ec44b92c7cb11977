"""What travels through the station around the core's stages: Trigger and Capture → Judged → Recorded.

Rules kept here: frozen, no behaviour beyond a derived value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from linegate.stages import Frame, FrameFault, Part, Prediction, Verdict

if TYPE_CHECKING:
    from linegate_edge.changes import Trace
    from linegate_edge.recipes import LoadedRecipe


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """A part in front of one camera: who it is, and its frame or why there is none.

    `origin` names the picture for good (a file's name and time, a client's idempotency key): a picture whose origin is
    already in the store is not judged a second time. `key` joins the frames of several views to one part
    (`"trigger:17"`, `"pulse:17"` where a wire gave it, `"encoder:123456"`, `"serial:A-17"`); without one the frame is a part of
    its own.
    """

    part: Part
    item: Frame | FrameFault
    origin: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trigger:
    """The event that says "a part is here"; `triggered_at` is aware UTC.

    `origin` names the event for good, as with `Capture`; `encoder` is the conveyor's count; `on_accepted` is called with the
    id that the verdict will have, from the writer's thread, once the trigger is journalled: from then on it gets its verdict
    even if the station is killed.
    """

    part: Part
    triggered_at: datetime
    origin: str | None = None
    encoder: int | None = None
    on_accepted: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """A stored picture: SHA-256 of its bytes, file name in the evidence folder, media type and size."""

    sha256: str
    name: str
    media_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One view of a part: what came, what the model said of it or why it said nothing, and what each step took."""

    item: Frame | FrameFault
    prediction: Prediction | None = None
    fault: FrameFault | None = None
    durations_ms: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    evidence: Evidence | None = None
    trace: Trace | None = None

    @property
    def judged(self) -> Prediction | FrameFault:
        """What `decide` is told of this view."""
        judged = self.prediction or self.fault or self.item
        assert not isinstance(judged, Frame)  # a frame has a prediction, or a fault that says why not
        return judged


Mode = Literal["production", "challenge", "study"]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A part with its verdict, not yet committed; `journalled`: its trigger stands in the journal under `verdict_id`."""

    part: Part
    recipe: LoadedRecipe
    mode: Mode
    verdict_id: str
    verdict: Verdict
    looks: tuple[Look, ...]
    captured_at: datetime
    triggered_at: datetime | None
    decided_at: datetime
    latency_ms: Mapping[str, float]
    origins: tuple[str, ...] = ()
    journalled: bool = False

    @property
    def shown(self) -> Look | None:
        """The look that tells most: that of the view which decided, or else the first with a frame."""
        views = [view.view for view in self.verdict.views if view.reason_text == self.verdict.reason_text]
        frames = [look for look in self.looks if isinstance(look.item, Frame)]
        return next((look for look in frames if look.item.view in views), frames[0] if frames else next(iter(self.looks), None))


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
