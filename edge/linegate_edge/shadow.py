"""Candidates that judge the champion's frames after it, for nobody but the models page.

Rules kept here: a part has its verdict before a candidate sees it; offering one costs the line microseconds, never waits and
never raises; the work happens on one thread of the lowest priority, only while the line is not behind, and rests after each
part so long that it takes no more than its share of one core; what does not fit is dropped and counted; a candidate that hangs
or raises costs itself alone. What a candidate says is kept in the reviews, and goes into no verdict and to no broker.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol

from linegate.decide import Recipe, ViewRecipe, decide
from linegate.errors import StoreError
from linegate.stages import Decision, Frame, Prediction
from linegate_edge.message import utc_now
from linegate_edge.recipes import Place
from linegate_edge.records import Judged
from linegate_edge.review.database import ReviewDatabase

log = logging.getLogger("linegate.shadow")
_WAITING: Final = 8
_BATCH: Final = 32
_FLUSH_S: Final = 2.0
_LOWEST: Final = 19
_KEPT_ROWS: Final = 200_000
_UNSTORED_ROWS: Final = 1_000
_HANGS_AFTER_S: Final = 30.0
_LONGEST_REST_S: Final = 300.0
_INSERT: Final = f"INSERT INTO shadow VALUES (NULL{', ?' * 14})"


class Predictor(Protocol):
    """What judges frames; `linegate.infer.Inspector` is one."""

    def predict(self, frame: Frame, roi_xyxy: tuple[float, float, float, float] | None = None) -> Prediction:
        """Return what the model says of a frame."""


@dataclass(frozen=True, slots=True)
class Target:
    """A candidate at one view: what judges, by which limits, in which region of the frame."""

    digest: str
    predictor: Predictor
    limits: ViewRecipe
    roi_xyxy: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class ShadowState:
    """What the thread did since the station's start; `share` is the part of one core that it took."""

    judged: int
    failed: int
    dropped: int
    share: float
    hangs: bool
    last_error: str | None


NO_TARGETS: Final[Mapping[Place, Target]] = MappingProxyType({})


class Shadow:
    """Judges what it is offered, as far as it may; all methods may be called from any thread.

    `share` is the part of one core that it may take; `behind` says whether the line has too much to do.
    """

    def __init__(self, database: ReviewDatabase, share: float, behind: Callable[[], bool]) -> None:
        self._database, self._share, self._behind = database, share, behind
        self._targets = NO_TARGETS
        self._parts: queue.Queue[Judged | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._thread: _Thread | None = None
        self._judged = self._failed = self._dropped = 0
        self._busy_s, self._since = 0.0, time.monotonic()
        self._last_error: str | None = None

    def use(self, targets: Mapping[Place, Target]) -> None:
        """Judge by these from the next part on; a thread that hangs in an older one is left behind."""
        with self._lock:
            self._targets = MappingProxyType(dict(targets))
            if targets and (self._thread is None or not self._thread.is_alive() or self._thread.hangs):
                if self._thread is not None:
                    self._thread.left_behind = True
                self._thread = _Thread(self)
                self._thread.start()

    def offer(self, judged: Judged) -> None:
        """Take a part that has its verdict, or leave it; the caller never waits."""
        targets = self._targets
        if not targets:
            return
        name = judged.recipe.name
        if not any((name, look.item.view) in targets for look in judged.looks):
            return
        try:
            if self._behind():
                raise queue.Full
            self._parts.put_nowait(judged)
        except queue.Full:
            self._dropped += 1

    @property
    def state(self) -> ShadowState:
        """What it did so far."""
        thread = self._thread
        share = self._busy_s / max(time.monotonic() - self._since, 1e-9)
        hangs = thread is not None and thread.hangs
        return ShadowState(self._judged, self._failed, self._dropped, share, hangs, self._last_error)

    def stop(self, timeout_s: float = 2.0) -> None:
        """End; what waits is left, and a candidate that hangs is not waited for longer than `timeout_s`."""
        with self._lock:
            self._targets, thread = NO_TARGETS, self._thread
        if thread is not None:
            thread.ending.set()
            with contextlib.suppress(queue.Full):  # it is awake, then
                self._parts.put_nowait(None)
            thread.join(timeout_s)

    # -- on the thread ----------------------------------------------------------------------------------------------

    def judge(self, judged: Judged, thread: _Thread) -> list[tuple[Any, ...]]:
        """Return rows of what the candidates say of a part."""
        rows = []
        for look in judged.looks:
            target = self._targets.get((judged.recipe.name, look.item.view))
            champion = next((view for view in judged.verdict.views if view.frame_id == look.item.frame_id), None)
            if target is None or look.prediction is None or champion is None or not isinstance(look.item, Frame):
                continue  # what the champion could not judge says nothing of the candidate
            view = judged.recipe.views[look.item.view]
            thread.busy_since = started = time.monotonic()
            decision, score, threshold, error = Decision.UNDECIDED, None, None, None
            try:
                prediction = target.predictor.predict(look.item, target.roi_xyxy)
                said = decide([prediction], Recipe("shadow", {look.item.view: target.limits})).views[0]
                decision, score, threshold = said.decision, said.score, said.threshold
                self._judged += 1
            except Exception as broken:  # noqa: BLE001 - a candidate may break in any way, and the line must not hear of it
                error = f"{type(broken).__name__}: {broken}"[:500]
                self._failed, self._last_error = self._failed + 1, error
            finally:
                spent_s = time.monotonic() - started
                thread.busy_since = None
                self._busy_s += spent_s
            rows.append(
                (
                    judged.verdict_id,
                    judged.part.serial,
                    judged.recipe.name,
                    look.item.view,
                    view.inspector.package.digest,
                    champion.decision,
                    champion.score,
                    target.digest,
                    decision,
                    score if score is not None and math.isfinite(score) else None,
                    threshold,
                    error,
                    spent_s * 1e3,
                    utc_now().isoformat(),
                )
            )
        return rows

    def keep(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Commit rows, and return those that could not be: the newest, for memory must not grow."""
        if not rows:
            return rows
        try:
            with self._database.change() as db:
                db.executemany(_INSERT, rows)
                db.execute("DELETE FROM shadow WHERE number <= (SELECT max(number) FROM shadow) - ?", (_KEPT_ROWS,))
        except StoreError as error:
            self._last_error = str(error)
            return rows[-_UNSTORED_ROWS:]
        return []

    def rest_s(self, spent_s: float) -> float:
        """Return how long to do nothing after so much work."""
        return min(_LONGEST_REST_S, spent_s * (1 / self._share - 1))

    def next_part(self, timeout_s: float) -> Judged | None:
        """Return the next part to judge, or None: there is none, or the line needs its cores."""
        try:
            judged = self._parts.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if judged is not None and self._behind():
            self._dropped += 1
            return None
        return judged


class _Thread(threading.Thread):
    def __init__(self, shadow: Shadow) -> None:
        super().__init__(name="shadow", daemon=True)
        self._shadow = shadow
        self.ending = threading.Event()
        self.left_behind = False
        self.busy_since: float | None = None

    @property
    def hangs(self) -> bool:
        since = self.busy_since
        return since is not None and time.monotonic() - since > _HANGS_AFTER_S

    def run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
        rows: list[tuple[Any, ...]] = []
        flushed = time.monotonic()
        while not self.ending.is_set() and not self.left_behind:
            judged = self._shadow.next_part(_FLUSH_S)
            started = time.monotonic()
            if judged is not None:
                try:
                    rows += self._shadow.judge(judged, self)
                except Exception:
                    log.exception("the shadow of part %s broke down", judged.part.serial)
            if len(rows) >= _BATCH or time.monotonic() - flushed >= _FLUSH_S:
                rows, flushed = self._shadow.keep(rows), time.monotonic()
            if judged is not None:
                judged = None  # its pictures must not stay in memory for as long as the rest takes
                self.ending.wait(self._shadow.rest_s(time.monotonic() - started))
        self._shadow.keep(rows)
