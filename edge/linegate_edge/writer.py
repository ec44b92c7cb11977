"""Judged parts → recorded: the one thread that writes the store.

Rules kept here: nobody hears of a verdict before it is committed; when the store cannot commit, the line waits and says so,
and nothing is dropped; what others want changed (acknowledgements, journalled triggers, late frames, replays) goes along with
the next commit.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Final

from linegate.errors import StationError, StoreError
from linegate.stages import Decision
from linegate_edge.changes import Changes, LateFrame, NewVerdict, OpenTrigger
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.live import Live
from linegate_edge.message import verdict_message
from linegate_edge.metrics import Metrics
from linegate_edge.records import Judged, Recorded
from linegate_edge.store import Store

log = logging.getLogger("linegate.line")
_COMMIT_BATCH: Final = 256
_IDLE_S: Final = 0.2
_STORE_RETRY_S: Final = 1.0
_GATHER_S: Final = 0.02
_FULL_S: Final = 0.005

_Entry = tuple[Judged, "Future[Recorded]"]
_Batch = list[_Entry]


class _Wake:
    """Stands in the queue for "something beside verdicts is to be committed"."""


class Writer(threading.Thread):
    """Commits verdicts and what goes along; all methods may be called from any thread."""

    def __init__(
        self,
        store: Store,
        evidence: EvidenceFolder,
        live: Live,
        metrics: Metrics,
        *,
        behind: Callable[[], bool],
        on_commit: Callable[[], None],
        plant_codes: Mapping[str, str],
        on_replay: Callable[[int, int], None],
    ) -> None:
        super().__init__(name="writer", daemon=True)
        self._store, self._evidence, self._live, self._metrics = store, evidence, live, metrics
        self._behind, self._on_commit, self._on_replay = behind, on_commit, on_replay
        self.plant_codes = plant_codes
        self._judged: queue.SimpleQueue[_Entry | _Wake | None] = queue.SimpleQueue()
        self._side_lock = threading.Lock()
        self._acknowledged: list[int] = []
        self._opened: list[tuple[OpenTrigger, Callable[[str], None] | None]] = []
        self._late: list[LateFrame] = []
        self._replayed: list[tuple[int, int]] = []
        self._values: dict[str, str] = {}
        self._forgotten: list[tuple[Sequence[int], threading.Event]] = []
        self._giving_up = threading.Event()
        self.turns = 0
        """Turns that the loop has made: a watchdog sees by it that the writer does not hang."""
        self.unstored = 0
        """How many parts could not be stored."""

    # -- what others want -------------------------------------------------------------------------------------------

    def put(self, judged: Judged, done: Future[Recorded]) -> None:
        """Have a part committed, and `done` told; waits while too many are on their way."""
        while self._judged.qsize() >= _COMMIT_BATCH and self.is_alive():
            time.sleep(_FULL_S)  # only while the store refuses, or is slower than the line
        self._judged.put((judged, done))

    def acknowledge(self, sequences: Sequence[int]) -> None:
        """Have verdicts taken out of the outbox with the next commit."""
        with self._side_lock:
            self._acknowledged.extend(sequences)

    def open(self, trigger: OpenTrigger, on_accepted: Callable[[str], None] | None) -> None:
        """Have a trigger journalled; `on_accepted` is called with its verdict's id once that is durable."""
        with self._side_lock:
            self._opened.append((trigger, on_accepted))
        self._wake()

    def late(self, frame: LateFrame) -> None:
        """Have a late frame recorded with the next commit."""
        with self._side_lock:
            self._late.append(frame)

    def replay(self, first: int, last: int) -> None:
        """Have verdicts from `first` to `last` put back into the outbox."""
        # Before and after the commit: an acknowledgement of the last time must not take them out again.
        self._on_replay(first, last)
        with self._side_lock:
            self._replayed.append((first, last))
        self._wake()

    def keep(self, key: str, value: str) -> None:
        """Have a value of the station's own kept over restarts."""
        with self._side_lock:
            self._values[key] = value
        self._wake()

    def forget_evidence(self, sequences: Sequence[int]) -> None:
        """Have the evidence rows of these verdicts taken out of the store; return when that is done or the writer ends."""
        done = threading.Event()
        with self._side_lock:
            self._forgotten.append((sequences, done))
        while self.is_alive() and not done.wait(0.5):
            pass

    def _wake(self) -> None:
        if self._judged.empty():  # else it is awake
            self._judged.put(_Wake())

    def end(self, deadline: float) -> None:
        """End when all parts are committed; after `deadline` (monotonic) what the store still refuses is given up."""
        self._judged.put(None)
        self.join(max(0.0, deadline - time.monotonic()))
        self._giving_up.set()
        self.join(2 * _STORE_RETRY_S)
        with contextlib.suppress(queue.Empty):
            while True:
                entry = self._judged.get_nowait()
                if isinstance(entry, tuple):
                    self.unstored += 1
                    entry[1].set_exception(StationError("the station stopped before the verdict was stored"))

    def settle(self) -> None:
        """Commit what was asked for after the end; a store that refuses leaves acknowledged verdicts to be sent again."""
        if not self.is_alive():
            changes, _, _ = self._collect([])
            if changes:
                with contextlib.suppress(StoreError):
                    self._store.commit(changes)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Commit until the end."""
        open_end = True
        while open_end:
            self.turns += 1
            batch, open_end = self._next_batch()
            try:
                self._commit(batch)
            except Exception as error:
                # A store that refuses was told of as line stop already; anything else is a defect, and wants its traceback.
                log.error("%d verdicts could not be stored", len(batch), exc_info=not isinstance(error, StoreError))
                pending = [done for _, done in batch if not done.done()]
                self.unstored += len(pending)
                for done in pending:
                    done.set_exception(StationError(f"the verdict could not be stored: {error}"))

    def _next_batch(self) -> tuple[_Batch, bool]:
        """Return what to commit at once, and whether more may come.

        A part that came alone is committed alone, without delay. While more frames wait than there are workers, the line is
        behind anyhow, and parts are gathered for a moment: an fsync for several costs as much as an fsync for one. Meanwhile
        this thread sleeps, for to be woken for each part would cost the workers more than the commit.
        """
        batch: _Batch = []
        try:
            entry = self._judged.get(timeout=_IDLE_S)
            if self._behind():
                time.sleep(_GATHER_S)
            while entry is not None:
                if not isinstance(entry, _Wake):
                    batch.append(entry)
                if len(batch) == _COMMIT_BATCH:
                    return batch, True
                entry = self._judged.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False

    def _collect(
        self, rows: list[NewVerdict]
    ) -> tuple[Changes, list[tuple[str, Callable[[str], None]]], list[threading.Event]]:
        with self._side_lock:
            acknowledged, self._acknowledged = self._acknowledged, []
            opened, self._opened = self._opened, []
            late, self._late = self._late, []
            replayed, self._replayed = self._replayed, []
            values, self._values = self._values, {}
            forgotten, self._forgotten = self._forgotten, []
        changes = Changes(
            verdicts=rows,
            opened=[trigger for trigger, _ in opened],
            late=late,
            acknowledged=acknowledged,
            replayed=replayed,
            forgotten=[sequence for group, _ in forgotten for sequence in group],
            values=values,
        )
        accepted = [(trigger.verdict_id, tell) for trigger, tell in opened if tell is not None]
        return changes, accepted, [done for _, done in forgotten]

    def _commit(self, batch: _Batch) -> None:
        changes, accepted, forgotten = self._collect([self._as_row(judged) for judged, _ in batch])
        if not changes:
            for gone in forgotten:
                gone.set()
            return
        started = time.perf_counter()
        recorded = self._commit_when_possible(changes)
        for gone in forgotten:
            gone.set()
        for verdict_id, tell in accepted:
            tell(verdict_id)
        for first, last in changes.replayed:
            self._on_replay(first, last)
        if batch:
            self._on_commit()
        if batch:
            self._metrics.stage_seconds.labels("commit").observe(time.perf_counter() - started)
        for (judged, done), entry in zip(batch, recorded, strict=True):
            if entry.repeated:
                self._live.repeated()
                self._metrics.repeats.inc()
                self._drop_evidence(judged)
            else:
                self._count(judged)
                self._live.recorded(judged, entry)
            done.set_result(entry)

    def _drop_evidence(self, judged: Judged) -> None:
        """Delete the pictures of a part that had its verdict already, unless another verdict has the same picture."""
        for look in judged.looks:
            if look.evidence is not None and not self._store.knows_evidence(look.evidence.name):
                self._evidence.path_of(look.evidence.name).unlink(missing_ok=True)

    def _commit_when_possible(self, changes: Changes) -> list[Recorded]:
        refused = False
        while True:
            try:
                recorded = self._store.commit(changes)
            except StoreError as error:
                if not refused:
                    log.error("line stop: verdicts cannot be stored: %s", error)
                refused = True
                self._live.set_line_stop("store", str(error))
                self._metrics.line_stop.set(1)
                self.turns += 1  # a line stop is no hang: a restart would not make room on the disk
                if self._giving_up.wait(_STORE_RETRY_S):
                    raise
            else:
                if refused:
                    log.warning("line stop is over: verdicts are stored again")
                    self._live.set_line_stop("store", None)
                    self._metrics.line_stop.set(self._live.line_stop is not None)
                return recorded

    def _count(self, judged: Judged) -> None:
        verdict = judged.verdict
        self._metrics.parts.labels(verdict.decision).inc()
        if verdict.decision is Decision.UNDECIDED:
            self._metrics.undecided.labels(verdict.reason).inc()
        for stage, milliseconds in judged.latency_ms.items():
            self._metrics.stage_seconds.labels(stage).observe(milliseconds / 1e3)

    def _as_row(self, judged: Judged) -> NewVerdict:
        return NewVerdict(
            verdict_id=judged.verdict_id,
            serial=judged.part.serial,
            decision=judged.verdict.decision,
            decided_at=judged.decided_at.isoformat(),
            message=functools.partial(self._message, judged),
            origins=judged.origins,
            evidence=[look.evidence for look in judged.looks if look.evidence is not None],
            traces=[look.trace for look in judged.looks if look.trace is not None],
            journalled=judged.journalled,
        )

    def _message(self, judged: Judged, sequence: int) -> str:
        live = self._live
        return verdict_message(
            judged, sequence, station=live.station, boot_id=live.boot_id, plant_codes=self.plant_codes
        ).model_dump_json()
