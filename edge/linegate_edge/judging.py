"""Frames of open parts → what the models say → the part's verdict.

Rules kept here: what a frame comes to (judged, torn, refused, too late for the model) is noted once a view; whoever notes the
last view decides the part, without the lock; a model that breaks or hangs makes the part undecided. When parts begin and end
is left to `line`, what is kept to `archive` and `writer`.
"""

from __future__ import annotations

import functools
import logging
import threading
import time

from linegate.decide import decide
from linegate.stages import Decision, Frame, FrameFault, Part, Reason, Verdict
from linegate_edge.archive import Archive
from linegate_edge.changes import LateFrame
from linegate_edge.frame_health import FrameHealth
from linegate_edge.live import Live
from linegate_edge.message import utc_now
from linegate_edge.metrics import Metrics
from linegate_edge.parts import OpenPart, PartTable, as_fault, latency_ms
from linegate_edge.recipes import RecipeBook
from linegate_edge.records import Capture, Judged, Look
from linegate_edge.shadow import Shadow
from linegate_edge.workers import Workers
from linegate_edge.writer import Writer

log = logging.getLogger("linegate.line")


class Judging:
    """Judges the frames of the parts in `parts`, which `lock` guards; all methods may be called from any thread."""

    def __init__(
        self,
        lock: threading.Lock,
        parts: PartTable,
        book: RecipeBook,
        workers: Workers,
        archive: Archive,
        writer: Writer,
        live: Live,
        metrics: Metrics,
        health: FrameHealth,
        deadline_s: float,
        shadow: Shadow | None = None,
    ) -> None:
        self._shadow = shadow
        self._lock, self._parts, self._book, self.workers = lock, parts, book, workers
        self._archive, self.writer, self._live, self._metrics = archive, writer, live, metrics
        self._health, self._deadline_s = health, deadline_s
        self._overloaded = False

    def add(self, part: OpenPart, capture: Capture, reserved: bool) -> None:
        """Have a frame of an open part judged; `reserved` says that it has a place in the queue."""
        item = capture.item
        if not isinstance(item, Frame):
            self.looked(part, Look(item))
        elif not part.served:
            self._refuse(part, item, Reason.NO_RECIPE, self.no_recipe(part.part), reserved)
        elif item.view not in part.recipe.views:
            text = f"recipe '{part.recipe.name}' has no view '{item.view}', only {', '.join(part.recipe.views)}"
            self._refuse(part, item, Reason.NO_VIEW, text, reserved)
        elif not reserved:
            self._set_overloaded(True)
            text = f"{self.workers.max_waiting} frames were waiting already"
            self.looked(part, Look(item, fault=as_fault(item, Reason.QUEUE_FULL, text)))
        else:
            with self._lock:
                part.waiting[item.view] = item
                part.acquired = time.monotonic()
            run = functools.partial(self._judge, part, item, time.monotonic())
            self.workers.put(part.due, run, functools.partial(self._hung, part, item))

    def _refuse(self, part: OpenPart, item: Frame, reason: Reason, text: str, reserved: bool) -> None:
        if reserved:
            self.workers.release()
        self.looked(part, Look(item, fault=as_fault(item, reason, text)))

    def no_recipe(self, part: Part) -> str:
        """Return in one line why a part has no recipe."""
        known = sorted(kind for recipe in self._book.recipes.values() for kind in recipe.part_types)
        return f"no recipe serves parts of type '{part.part_type}', only {', '.join(known)}"

    def _judge(self, part: OpenPart, frame: Frame, since: float) -> None:
        waited_ms = (time.monotonic() - since) * 1e3
        if part.concluded:
            self.record_late(frame, part, "the frame waited for a model until after the deadline")
            return
        if self._overloaded and self.workers.waiting <= self.workers.max_waiting // 2:
            self._set_overloaded(False)
        view = part.recipe.views[frame.view]
        try:
            if (fault := self._health.check(part.recipe.name, frame)) is not None:
                self.looked(part, Look(frame, fault=fault, durations_ms={"queue": waited_ms}))
                return
            prediction = view.inspector.predict(frame, view.roi_xyxy)
            look = Look(frame, prediction, durations_ms={"queue": waited_ms, **prediction.durations_ms})
        except Exception as error:
            log.exception("frame %s of camera %s could not be judged", frame.frame_id, frame.camera)
            text = f"the model failed: {type(error).__name__}: {error}"
            look = Look(frame, fault=as_fault(frame, Reason.MODEL_FAULT, text), durations_ms={"queue": waited_ms})
        self.looked(part, look)

    def _hung(self, part: OpenPart, frame: Frame, timeout_s: float) -> None:
        text = f"the model has not come back for {timeout_s:g} s: see [model] timeout_ms"
        self.looked(part, Look(frame, fault=as_fault(frame, Reason.MODEL_TIMEOUT, text)), from_clock=True)

    def looked(self, part: OpenPart, look: Look, *, from_clock: bool = False) -> None:
        """Take note of what became of one view, and conclude the part if it was the last."""
        view = look.item.view
        with self._lock:
            late = part.concluded
            if not late:
                part.waiting.pop(view, None)
                part.looks.setdefault(view, look)
                complete = part.complete and self._parts.conclude(part, time.monotonic())
        if late:
            # A worker whose model came back after its part was given up, too.
            score = f", with the score {look.prediction.score:.4g}" if look.prediction is not None else ""
            self.record_late(look.item, part, f"the frame was judged after the verdict{score}")
        elif complete:
            self.decide(part, None, from_clock=from_clock)

    def conclude(self, part: OpenPart, reason: Reason, text: str) -> None:
        """Conclude a part as undecided for a reason that lies in no view."""
        with self._lock:
            mine = self._parts.conclude(part, time.monotonic())
        if mine:
            self.decide(part, Verdict(Decision.UNDECIDED, reason, text, ()), from_clock=True)

    def decide(self, part: OpenPart, verdict: Verdict | None, *, from_clock: bool) -> None:
        """Give a part its verdict; whoever concluded it calls this, once, and without the lock."""
        looks = list(part.looks.values())
        for view, frame in part.waiting.items():
            if view not in part.looks:
                text = f"the frame was not judged within {self._deadline_s * 1e3:g} ms"
                looks.append(Look(frame, fault=as_fault(frame, Reason.DEADLINE_MISSED, text)))
        if verdict is None:
            verdict = decide([look.judged for look in looks], part.recipe.recipe)
        judged = Judged(
            part=part.part,
            recipe=part.recipe,
            mode=part.mode,
            verdict_id=part.verdict_id,
            verdict=verdict,
            looks=tuple(looks),
            captured_at=part.captured_at,
            triggered_at=part.triggered_at,
            decided_at=utc_now(),
            latency_ms=latency_ms(part, looks, time.monotonic()),
            origins=tuple(part.origins),
            journalled=part.journalled,
        )
        part.looks, part.waiting = {}, {}  # the table remembers the part for a while, but not its pictures
        if part.origins:
            part.done.add_done_callback(lambda _: self._settled(part))
        self._archive.put(judged, part.done, may_wait=not from_clock)
        if self._shadow is not None:
            self._shadow.offer(judged)

    def _settled(self, part: OpenPart) -> None:
        with self._lock:
            self._parts.committed(part)

    def record_late(self, item: Frame | FrameFault, part: OpenPart | None, why: str, origin: str | None = None) -> None:
        """Take note of a frame that came or was judged after the verdict of its part; None: it has no part."""
        self._metrics.late_frames.labels(item.camera).inc()
        log.warning("late frame %s of camera %s, view %s: %s", item.frame_id, item.camera, item.view, why)
        verdict_id = part.verdict_id if part is not None else None
        times = item.captured_at.isoformat(), utc_now().isoformat()
        self.writer.late(LateFrame(verdict_id, item.view, item.camera, item.frame_id, *times, why, origin))

    def watch(self) -> None:
        """Replace workers that hang, and end the line stop of a queue that was full; to be called now and then."""
        self.workers.watch()
        if self._overloaded and self.workers.waiting == 0:
            self._set_overloaded(False)

    def _set_overloaded(self, overloaded: bool) -> None:
        if overloaded is not self._overloaded:
            self._overloaded = overloaded
            text = "the queue is full: parts come faster than they are judged" if overloaded else None
            self._live.set_line_stop("queue", text)
            self._metrics.line_stop.set(self._live.line_stop is not None)
