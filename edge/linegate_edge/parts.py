"""Frames of several views → parts: which frame belongs to which part, and when a part is complete.

Rules kept here: frames are joined by the key of a trigger, an encoder count or a serial, never by when they came; a part is
concluded once, by whoever completes it or by its deadline; a frame that comes after that is late, and is told apart from one
that nobody asked for. No clock, no file, no model: the line owns the lock under which all of this is called.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from linegate.stages import Frame, FrameFault, Part, Reason
from linegate_edge.recipes import LoadedRecipe
from linegate_edge.records import Capture, Look, Mode, Recorded

REMEMBERED_S: Final = 60.0
"""How long the keys of a concluded part are remembered, so that a late frame is known for what it is."""
REMEMBERED_KEYS: Final = 4096
"""And how many at most, for memory must not grow with the line's speed."""


@dataclass(slots=True, eq=False)
class OpenPart:
    """A part on its way to its verdict; `due` and `opened` are seconds of the monotonic clock.

    `age_ms` is how old its trigger or frame was when it was opened. A part that is `alone` has one frame and waits for no
    other; one that is not `served` fits no recipe. `waiting` are the frames that wait for a model or are in it.
    """

    part: Part
    recipe: LoadedRecipe
    mode: Mode
    verdict_id: str
    captured_at: datetime
    triggered_at: datetime | None
    opened: float
    age_ms: float
    due: float
    served: bool = True
    alone: bool = False
    journalled: bool = False
    keys: tuple[str, ...] = ()
    origins: list[str] = field(default_factory=list)
    looks: dict[str, Look] = field(default_factory=dict)
    waiting: dict[str, Frame] = field(default_factory=dict)
    acquired: float | None = None
    concluded: bool = False
    done: Future[Recorded] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.done.set_running_or_notify_cancel()  # a part cannot be cancelled: it lies before the camera

    @property
    def complete(self) -> bool:
        """Say whether nothing more is awaited."""
        if self.alone:
            return bool(self.looks)
        return self.recipe.views.keys() <= self.looks.keys()

    def has(self, view: str) -> bool:
        """Say whether a frame of this view has come already."""
        return view in self.looks or view in self.waiting


@dataclass(slots=True, eq=False)
class HeldFrame:
    """A frame that came before its trigger; `until` is how long it is kept, by the monotonic clock."""

    capture: Capture
    until: float
    done: Future[Recorded] = field(default_factory=Future)


class PartTable:
    """The parts in hand, by key and by origin, and their deadlines; its caller holds a lock."""

    def __init__(self) -> None:
        self._by_key: dict[str, OpenPart] = {}
        self._by_origin: dict[str, OpenPart] = {}
        self._concluded: OrderedDict[str, tuple[OpenPart, float]] = OrderedDict()
        self._held: dict[str, list[HeldFrame]] = {}
        self._deadlines: list[tuple[float, int, OpenPart]] = []
        self._count = 0
        self.in_hand = 0
        """How many parts are open."""

    def open(self, part: OpenPart) -> None:
        """Take a part in hand."""
        for key in part.keys:
            self._by_key.setdefault(key, part)
        for origin in part.origins:
            self._by_origin[origin] = part
        self._count += 1
        self.in_hand += 1
        heapq.heappush(self._deadlines, (part.due, self._count, part))

    def find(self, key: str) -> OpenPart | None:
        """Return the open part of a key, or None."""
        return self._by_key.get(key)

    def find_concluded(self, key: str) -> OpenPart | None:
        """Return the part of a key that has had its verdict not long ago, or None."""
        entry = self._concluded.get(key)
        return entry[0] if entry is not None else None

    def find_origin(self, origin: str) -> OpenPart | None:
        """Return the part of an origin that is not in the store yet, or None."""
        return self._by_origin.get(origin)

    def add_origin(self, part: OpenPart, origin: str) -> None:
        """Take note of the origin of a further frame of a part."""
        part.origins.append(origin)
        self._by_origin[origin] = part

    def conclude(self, part: OpenPart, now: float) -> bool:
        """Mark a part as concluded; False where it was already."""
        if part.concluded:
            return False
        part.concluded = True
        self.in_hand -= 1
        for key in part.keys:
            if self._by_key.get(key) is part:
                del self._by_key[key]
                self._concluded[key] = part, now
                self._concluded.move_to_end(key)
        return True

    def committed(self, part: OpenPart) -> None:
        """Forget the origins of a part that is in the store."""
        for origin in part.origins:
            if self._by_origin.get(origin) is part:
                del self._by_origin[origin]

    def hold(self, key: str, frame: HeldFrame) -> None:
        """Keep a frame whose trigger has not come yet."""
        self._held.setdefault(key, []).append(frame)

    def take_held(self, keys: Iterable[str]) -> list[HeldFrame]:
        """Return the frames held for these keys, and keep them no longer."""
        return [frame for key in keys for frame in self._held.pop(key, ())]

    def expire(self, now: float) -> tuple[list[OpenPart], list[HeldFrame]]:
        """Return the parts whose deadline has passed and the frames that no trigger came for; both are let go of."""
        overdue: list[OpenPart] = []
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].concluded):
            part = heapq.heappop(self._deadlines)[2]
            if not part.concluded:
                overdue.append(part)
        while self._concluded and (
            len(self._concluded) > REMEMBERED_KEYS or now - next(iter(self._concluded.values()))[1] > REMEMBERED_S
        ):
            self._concluded.popitem(last=False)
        unasked: list[HeldFrame] = []
        for key in [key for key, frames in self._held.items() if frames[0].until <= now]:
            unasked += self._held.pop(key)
        return overdue, unasked

    @property
    def next_due(self) -> float | None:
        """The nearest deadline, or None."""
        return self._deadlines[0][0] if self._deadlines else None

    def open_parts(self) -> Iterator[OpenPart]:
        """Return all parts that are not concluded."""
        return (part for _, _, part in self._deadlines if not part.concluded)

    def all_held(self) -> list[HeldFrame]:
        """Return all frames that wait for a trigger, and keep them no longer."""
        return self.take_held(list(self._held))


def latency_ms(part: OpenPart, looks: Sequence[Look], now: float) -> dict[str, float]:
    """Return what each step took: of several views the slowest; `total` from trigger or capture to decision."""
    stages: dict[str, float] = {}
    for look in looks:
        for stage, milliseconds in look.durations_ms.items():
            stages[stage] = max(stages.get(stage, 0.0), milliseconds)
    if part.triggered_at is not None and part.acquired is not None:
        stages["acquire"] = (part.acquired - part.opened) * 1e3
    stages["total"] = part.age_ms + (now - part.opened) * 1e3
    return {stage: round(value, 3) for stage, value in stages.items()}


def serial_key(part: Part) -> str:
    return f"serial:{part.serial}:{part.attempt}"


def as_fault(item: Frame | FrameFault, reason: Reason, detail: str) -> FrameFault:
    """Return why a frame was not judged."""
    return FrameFault(
        reason, detail, item.frame_id, item.camera, item.view, item.sequence, item.captured_at, item.encoded, item.media_type
    )
