"""Triggers and frames → parts with one verdict each, by their deadline.

Rules kept here: every trigger, and every frame that comes of itself, gets exactly one verdict, at its deadline at the latest;
a view that is missing makes its part undecided; a frame that comes after the verdict is recorded as late; a part keeps the
recipe and the mode that it began with. Where frames come from is left to `sources`, what becomes of them to `judging`, where
verdicts go to `publish`.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import uuid4

from linegate.errors import StationError
from linegate.stages import Frame, FrameFault, Part, Reason
from linegate_edge.archive import Archive
from linegate_edge.changes import OpenTrigger
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.frame_health import KEPT_REFERENCES, FrameHealth
from linegate_edge.judging import Judging
from linegate_edge.live import Live
from linegate_edge.message import utc_now
from linegate_edge.metrics import Metrics
from linegate_edge.parts import HeldFrame, OpenPart, PartTable, as_fault, serial_key
from linegate_edge.recipes import LoadedRecipe, RecipeBook
from linegate_edge.records import Capture, Look, Mode, Recorded, Trigger
from linegate_edge.settings import StationSettings
from linegate_edge.shadow import Shadow
from linegate_edge.store import Store, StoreReader
from linegate_edge.workers import Workers
from linegate_edge.writer import Writer

log = logging.getLogger("linegate.line")
_PUT_S: Final = 0.5
_TICK_S: Final = 0.05
_SHORTEST_WAIT_S: Final = 0.002
_TRIGGERS_KEPT: Final = 256
_OLDEST_MS: Final = 60_000.0

TriggerCameras = Callable[[LoadedRecipe, str], list[FrameFault]]
"""Sets and triggers the cameras of a recipe for a key; returns a fault for each view whose camera is not there."""


class Line:
    """The path of one station from trigger to committed verdict; `submit` and `trigger` may be called from any thread."""

    def __init__(
        self,
        settings: StationSettings,
        book: RecipeBook,
        store: Store,
        evidence: EvidenceFolder,
        live: Live,
        metrics: Metrics,
        *,
        workers: int,
        on_commit: Callable[[], None],
        plant_codes: Mapping[str, str],
        trigger_cameras: TriggerCameras = lambda _recipe, _key: [],
        on_replay: Callable[[int, int], None] = lambda _first, _last: None,
        shadow: Shadow | None = None,
    ) -> None:
        self.book = book
        self.mode: Mode = "production"
        self._live, self._metrics = live, metrics
        self._deadline_s = settings.station.deadline_ms / 1e3
        self._triggered = settings.trigger.kind != "free_run"
        self._trigger_cameras = trigger_cameras
        self._lock = threading.Lock()
        self._parts = PartTable()
        self._number = 0
        self._triggered_at: deque[datetime] = deque(maxlen=_TRIGGERS_KEPT)  # of the last triggers, the newest last
        self.workers = Workers(workers, settings.limits.queue_frames, settings.model.timeout_ms / 1e3)
        self.writer = Writer(
            store,
            evidence,
            live,
            metrics,
            behind=lambda: self.workers.waiting > workers,
            on_commit=on_commit,
            plant_codes=plant_codes,
            on_replay=on_replay,
        )
        self._archive = Archive(evidence, settings.review, metrics, self.writer.put)
        self.health = FrameHealth(settings.health, store.value(KEPT_REFERENCES), self._keep_references)
        self._judging = Judging(
            self._lock,
            self._parts,
            book,
            self.workers,
            self._archive,
            self.writer,
            live,
            metrics,
            self.health,
            self._deadline_s,
            shadow,
        )
        self._recover = store.open_triggers()
        self._reader = StoreReader(store.path)
        self._reader_lock = threading.Lock()
        self._closed = threading.Event()
        self._paused: str | None = None
        self._clock = threading.Thread(target=self._watch, name="clock", daemon=True)
        self._clock_ending = threading.Event()
        metrics.queue_frames.set_function(lambda: self.workers.waiting)
        metrics.parts_in_hand.set_function(lambda: self._parts.in_hand)

    def start(self) -> None:
        """Start all threads; triggers that the last run left without a verdict get theirs now."""
        self.workers.start()
        self.writer.start()
        self._archive.start()
        self._clock.start()
        for left in self._recover:
            self._conclude_left(left)

    # -- what comes in ----------------------------------------------------------------------------------------------

    def trigger(self, trigger: Trigger, missed: str | None = None) -> Future[Recorded]:
        """Open a part, have its cameras take their frames, and return the future of its verdict, due by the deadline.

        A part that was before the cameras unknown to the station is told with `missed`, the reason in one line: it is
        undecided at once, and takes its number, so that its frames do not go to another part.

        Raises:
            StationError: the station is stopping.
        """
        if self._closed.is_set():
            raise StationError("the station is stopping and takes no more parts")
        if (known := self._known(trigger.origin)) is not None:
            if trigger.on_accepted is not None:
                known.add_done_callback(functools.partial(_tell_known, trigger.on_accepted))
            return known
        recipe = self.book.for_part(trigger.part)
        origins = [trigger.origin] if trigger.origin is not None else []
        with self._lock:
            self._number += 1
            keys = [f"trigger:{self._number}", f"pulse:{self._number}", serial_key(trigger.part)]
            if trigger.encoder is not None:
                keys.append(f"encoder:{trigger.encoder}")
            at = trigger.triggered_at
            self._triggered_at.append(at)
            opened = self._open(trigger.part, recipe, at, tuple(keys), origins, triggered_at=at)
            opened.journalled = True
            # Before a frame can complete the part: the writer must hear of the trigger before it hears of the verdict.
            self.writer.open(OpenTrigger(opened.verdict_id, trigger.origin, trigger.part, at.isoformat()), trigger.on_accepted)
            held = self._parts.take_held(keys)
        if missed is not None:
            self._judging.conclude(opened, Reason.TRIGGER_MISSED, missed)
        elif self._paused is not None:
            self._judging.conclude(opened, Reason.STOPPED, self._paused)
        elif recipe is None:
            self._judging.conclude(opened, Reason.NO_RECIPE, self._judging.no_recipe(trigger.part))
        else:
            for fault in self._trigger_cameras(recipe, keys[0]):
                self._judging.looked(opened, Look(fault))
        for frame in held:
            _chain(opened.done, frame.done)
            self._judging.add(opened, frame.capture, reserved=self._reserve(frame.capture.item, wait=False))
        return opened.done

    def submit(self, capture: Capture, *, wait: bool = True) -> Future[Recorded]:
        """Take a frame and return the future of its part's committed verdict.

        With `wait`, a full queue holds the caller back; without, the part becomes undecided (`queue_full`), so that a camera
        that cannot wait never loses a part in silence. A frame with a key is one view of the part of that key.

        Raises:
            StationError: the station is stopping, or stopped by command, and takes no frames.
        """
        self._check_open()
        if (known := self._known(capture.origin)) is not None:
            return known
        capture = self._checked(capture)
        reserved = self._reserve(capture.item, wait)
        recipe = self.book.for_part(capture.part)
        key = self._key_of(capture, recipe)
        with self._lock:
            part = self._parts.find(key) if key is not None else None
            after = self._parts.find_concluded(key) if key is not None and part is None else None
            held = None
            if part is None and after is None:
                if key is not None and self._triggered:
                    held = HeldFrame(capture, time.monotonic() + self._deadline_s)
                    self._parts.hold(key, held)
                else:
                    keys = (key,) if key is not None else ()
                    part = self._open(capture.part, recipe, capture.item.captured_at, keys, [])
                    part.alone = key is None
            if part is not None:
                if part.has(capture.item.view) and not part.alone:
                    part, after = None, part
                elif capture.origin is not None:
                    self._parts.add_origin(part, capture.origin)
        if part is not None:
            self._judging.add(part, capture, reserved)
            return part.done
        if reserved:
            self.workers.release()
        if held is not None:
            return held.done
        assert after is not None
        why = "a second frame of this view came" if not after.concluded else "the frame came after the verdict"
        self._judging.record_late(capture.item, after, why, capture.origin)
        return after.done

    def pause(self, reason: str | None) -> None:
        """Take no more frames until called with None: frames are refused, and triggers get an undecided verdict."""
        self._paused = reason

    @property
    def running(self) -> bool:
        """Say whether frames are taken."""
        return self._paused is None and not self._closed.is_set()

    @property
    def next_number(self) -> int:
        """The number that the next trigger will have."""
        return self._number + 1

    @property
    def in_hand(self) -> int:
        """How many parts have no verdict yet."""
        return self._parts.in_hand

    @property
    def alive(self) -> bool:
        """Say whether all threads of the line run."""
        return self.writer.is_alive() and self._archive.is_alive() and self._clock.is_alive() and self.workers.alive

    def stop(self, timeout_s: float) -> int:
        """Finish the parts in hand within `timeout_s` and return how many could not be stored.

        Sources and the HTTP server must have ended before: nobody may call `submit` any more.
        """
        deadline = time.monotonic() + timeout_s
        self._closed.set()
        self.workers.end()
        self.workers.join(deadline)
        with self._lock:
            left, held = list(self._parts.open_parts()), self._parts.all_held()
        for part in left:
            self._judging.conclude(part, Reason.STOPPED, "the station stopped before all views of the part were judged")
        for frame in held:
            frame.done.set_exception(StationError("the station stopped before the frame's trigger came"))
        self._clock_ending.set()
        self._clock.join(max(0.0, deadline - time.monotonic()))
        self._archive.end()
        self._archive.join(max(0.0, deadline - time.monotonic()))
        self.writer.end(deadline)
        with self._reader_lock:
            self._reader.close()
        return self.writer.unstored

    def _keep_references(self, text: str) -> None:
        self.writer.keep(KEPT_REFERENCES, text)

    # -- opening and joining ----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise StationError("the station is stopping and takes no more parts")
        if self._paused is not None:
            raise StationError(self._paused)

    def _known(self, origin: str | None) -> Future[Recorded] | None:
        if origin is None:
            return None
        with self._lock:
            part = self._parts.find_origin(origin)
        done: Future[Recorded] = Future()
        if part is not None:
            _chain(part.done, done, repeated=True)
            return done
        with self._reader_lock:
            recorded = self._reader.recorded(origin)
        if recorded is None:
            return None
        done.set_result(recorded)
        return done

    def _checked(self, capture: Capture) -> Capture:
        """Return a frame as a fault where a wire triggered it after the trigger that followed its own.

        A camera that ignored a pulse of the wire counts one behind from then on: its frames are those of the next parts.
        """
        kind, _, number = (capture.key or "").partition(":")
        if kind != "pulse" or not number.isdigit() or not isinstance(capture.item, Frame):
            return capture
        with self._lock:
            newer = self._number - int(number)  # how many triggers came after this one
            following = self._triggered_at[-newer] if 0 < newer <= len(self._triggered_at) else None
        if following is None or capture.item.captured_at < following:
            return capture
        text = "the frame was taken after the next part's trigger: the camera has missed one, and must be opened anew"
        return replace(capture, item=as_fault(capture.item, Reason.FRAME_OF_ANOTHER_PART, text))

    def _reserve(self, item: Frame | FrameFault, wait: bool) -> bool:
        """Take a place in the queue; False where there is none or none is needed."""
        if isinstance(item, FrameFault):
            return False
        while not self.workers.reserve(_PUT_S if wait else 0):
            if not wait:
                return False
            self._check_open()  # not for ever: that would hold up the stop
        return True

    def _key_of(self, capture: Capture, recipe: LoadedRecipe | None) -> str | None:
        """Return what joins a frame to others of its part: its own key, or the serial where parts have several views."""
        if capture.key is not None or recipe is None:
            return capture.key
        by_serial = (self._triggered or len(recipe.views) > 1) and capture.part.serial_source != "counter"
        return serial_key(capture.part) if by_serial else None

    def _open(
        self,
        part: Part,
        recipe: LoadedRecipe | None,
        captured_at: datetime,
        keys: tuple[str, ...],
        origins: list[str],
        triggered_at: datetime | None = None,
    ) -> OpenPart:
        now = time.monotonic()
        # By the monotonic clock from here on, for the wall clock may be set at any time.
        age_ms = min(max(0.0, (utc_now() - captured_at).total_seconds() * 1e3), _OLDEST_MS)
        opened = OpenPart(
            part=part,
            recipe=recipe or self.book.active,
            served=recipe is not None,
            mode=self.mode,
            verdict_id=str(uuid4()),
            captured_at=captured_at,
            triggered_at=triggered_at,
            opened=now,
            age_ms=age_ms,
            due=now + self._deadline_s,
            keys=keys,
            origins=origins,
        )
        self._parts.open(opened)
        self._live.opened()
        self._metrics.triggers.inc()
        return opened

    def _conclude_left(self, left: OpenTrigger) -> None:
        """Give a trigger of the last run, which was killed before its verdict, an undecided one."""
        moment = datetime.fromisoformat(left.triggered_at)
        with self._lock:
            origins = [left.origin] if left.origin is not None else []
            part = self._open(left.part, self.book.for_part(left.part), moment, (), origins, triggered_at=moment)
            part.verdict_id, part.journalled = left.verdict_id, True
        self._judging.conclude(part, Reason.STATION_RESTARTED, "the station was restarted before the part was judged")

    # -- the clock --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Conclude parts at their deadline, give up frames that no trigger came for, replace workers that hang."""
        while not self._clock_ending.is_set():
            now = time.monotonic()
            with self._lock:
                overdue, unasked = self._parts.expire(now)
                mine = [part for part in overdue if self._parts.conclude(part, now)]
                next_due = self._parts.next_due
            for part in mine:
                self._judging.decide(part, None, from_clock=True)
            for frame in unasked:
                text = f"no trigger came for the frame within {self._deadline_s * 1e3:g} ms"
                self._judging.record_late(frame.capture.item, None, text, frame.capture.origin)
                frame.done.set_exception(StationError(text))
            self._judging.watch()
            wait_s = _TICK_S if next_due is None else min(_TICK_S, next_due - time.monotonic())
            self._clock_ending.wait(max(_SHORTEST_WAIT_S, wait_s))


def _chain(source: Future[Recorded], target: Future[Recorded], *, repeated: bool = False) -> None:
    """Tell `target` what `source` is told; `repeated` marks it as the verdict of the first time."""

    def copy(done: Future[Recorded]) -> None:
        if (error := done.exception()) is not None:
            target.set_exception(error)
        else:
            target.set_result(replace(done.result(), repeated=True) if repeated else done.result())

    source.add_done_callback(copy)


def _tell_known(on_accepted: Callable[[str], None], done: Future[Recorded]) -> None:
    if done.exception() is None:
        on_accepted(done.result().verdict_id)
