"""What one transaction of the store changes.

Rules kept here: frozen; times are ISO 8601, UTC. How it becomes durable is left to `store`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from linegate.stages import Part
from linegate_edge.records import Evidence


@dataclass(frozen=True, slots=True)
class Trace:
    """What is kept of a judged look beside its picture: `heat` is a PNG over `roi_xyxy`, `thumbnail` 16 × 16 grey bytes."""

    view: str
    frame_id: str
    size_wh: tuple[int, int]
    roi_xyxy: tuple[int, int, int, int]
    heat: bytes
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class NewVerdict:
    """A verdict on its way into the store; `message` gives its JSON once the sequence is known.

    `origins` are those of its trigger and frames; the first decides whether it is a repeat.
    """

    verdict_id: str
    serial: str
    decision: str
    decided_at: str
    message: Callable[[int], str]
    origins: Sequence[str] = ()
    evidence: Sequence[Evidence] = ()
    traces: Sequence[Trace] = ()
    journalled: bool = False


@dataclass(frozen=True, slots=True)
class OpenTrigger:
    """A trigger in the journal, whose part has no verdict yet; `verdict_id` is the id that it will have."""

    verdict_id: str
    origin: str | None
    part: Part
    triggered_at: str


@dataclass(frozen=True, slots=True)
class LateFrame:
    """A frame that came when its part had its verdict already, or that no trigger asked for."""

    verdict_id: str | None
    view: str
    camera: str
    frame_id: str
    captured_at: str
    arrived_at: str
    detail: str
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What one transaction changes.

    `acknowledged` are verdicts taken out of the outbox and `replayed` spans of them (first, last) put back into it;
    `forgotten` are those whose evidence retention has deleted: its rows go, the verdicts stay.
    """

    verdicts: Sequence[NewVerdict] = ()
    opened: Sequence[OpenTrigger] = ()
    late: Sequence[LateFrame] = ()
    acknowledged: Sequence[int] = ()
    replayed: Sequence[tuple[int, int]] = ()
    forgotten: Sequence[int] = ()
    values: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any((self.verdicts, self.opened, self.late, self.acknowledged, self.replayed, self.forgotten, self.values))
