"""Captures → verdicts in the store: a bounded queue, worker threads, one writer.

Rules kept here: every capture that `submit` takes gets exactly one verdict; a frame that finds the queue full, and one on
which the model breaks, become undecided, with the reason; nobody hears of a verdict before it is committed; when the
store cannot commit, the line waits and says so, and nothing is dropped. Where captures come from is left to `sources`,
where verdicts go to `publish`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from linegate import __version__
from linegate.decide import Recipe, decide
from linegate.errors import ImageError, StationError, StoreError
from linegate.infer import Inspector
from linegate.stages import Decision, Frame, FrameFault, Prediction, Reason
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.live import Live
from linegate_edge.message import MessageProvenance, utc_now, verdict_message
from linegate_edge.metrics import Metrics
from linegate_edge.records import Capture, Evidence, Judged, Recorded
from linegate_edge.store import NewVerdict, Store

log = logging.getLogger("linegate.line")
_COMMIT_BATCH: Final = 256
_IDLE_S: Final = 0.2
_STORE_RETRY_S: Final = 1.0
_PUT_S: Final = 0.5
_GATHER_S: Final = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class _InForce:
    recipe: Recipe
    provenance: MessageProvenance


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    capture: Capture
    submitted: float
    done: Future[Recorded]
    in_force: _InForce


class Line:
    """The path of one station from capture to committed verdict; `submit` may be called from any thread."""

    def __init__(
        self,
        inspector: Inspector,
        recipe: Recipe,
        store: Store,
        evidence: EvidenceFolder,
        live: Live,
        metrics: Metrics,
        *,
        workers: int,
        queue_frames: int,
        threshold_version: str,
        on_commit: Callable[[], None],
    ) -> None:
        self._inspector, self._store = inspector, store
        self._evidence, self._live, self._metrics, self._on_commit = evidence, live, metrics, on_commit
        self._jobs: queue.Queue[_Job | None] = queue.Queue(queue_frames)
        self._judged: queue.Queue[tuple[_Job, Judged] | None] = queue.Queue(_COMMIT_BATCH)
        self._side_lock = threading.Lock()
        self._acknowledged: list[int] = []
        self._forgotten: list[tuple[Sequence[int], threading.Event]] = []
        self._closed = threading.Event()
        self._giving_up = threading.Event()
        self._unstored = 0
        self.turns = 0
        """Turns that the writer has made: a watchdog sees by it that it does not hang."""
        self.use(recipe, threshold_version)
        self._workers = [threading.Thread(target=self._work, name=f"worker-{index}", daemon=True) for index in range(workers)]
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)
        metrics.queue_frames.set_function(self._jobs.qsize)

    def use(self, recipe: Recipe, threshold_version: str) -> None:
        """Put a recipe in force for the parts submitted from now on; those in hand keep theirs."""
        manifest = self._inspector.package.manifest
        provenance = MessageProvenance(
            recipe=recipe.name,
            package=manifest.name,
            package_version=manifest.version,
            package_digest=self._inspector.package.digest,
            threshold_version=threshold_version,
            software_version=__version__,
        )
        self._in_force = _InForce(recipe, provenance)

    def start(self) -> None:
        """Start the workers and the writer."""
        for thread in (*self._workers, self._writer):
            thread.start()

    def submit(self, capture: Capture, *, wait: bool = True) -> Future[Recorded]:
        """Take a capture and return the future of its committed verdict.

        With `wait`, a full queue holds the caller back; without, the part becomes undecided at once (`queue_full`), so
        that a camera that cannot wait never loses a part in silence.

        Raises:
            StationError: the station is stopping and takes no more parts.
        """
        job = _Job(capture, time.perf_counter(), Future(), self._in_force)
        job.done.set_running_or_notify_cancel()  # a part cannot be cancelled: it lies before the camera
        while not self._closed.is_set():
            try:
                if wait:
                    self._jobs.put(job, timeout=_PUT_S)  # not for ever: that would hold up the stop
                else:
                    self._jobs.put_nowait(job)
            except queue.Full:
                if wait:
                    continue
                fault = _as_fault(capture.item, Reason.QUEUE_FULL, f"{self._jobs.maxsize} frames were waiting already")
                self._judged.put((job, self._conclude(job, None, fault, {})))
            return job.done
        raise StationError("the station is stopping and takes no more parts")

    def acknowledge(self, sequences: Sequence[int]) -> None:
        """Have verdicts taken out of the outbox; the writer does it with its next commit."""
        with self._side_lock:
            self._acknowledged.extend(sequences)

    def forget_evidence(self, sequences: Sequence[int]) -> None:
        """Have the evidence rows of these verdicts taken out of the store; return when that is done or the line ends."""
        done = threading.Event()
        with self._side_lock:
            self._forgotten.append((sequences, done))
        while self._writer.is_alive() and not done.wait(_PUT_S):
            pass

    @property
    def alive(self) -> bool:
        """Say whether all threads of the line run."""
        return self._writer.is_alive() and all(thread.is_alive() for thread in self._workers)

    def stop(self, timeout_s: float) -> int:
        """Finish the parts in hand within `timeout_s` and return how many could not be stored.

        Sources and the HTTP server must have ended before: nobody may call `submit` any more.
        """
        deadline = time.monotonic() + timeout_s
        self._closed.set()
        for _ in self._workers:
            _put_before(self._jobs, deadline)
        for thread in self._workers:
            thread.join(max(0.0, deadline - time.monotonic()))
        _put_before(self._judged, deadline)
        self._writer.join(max(0.0, deadline - time.monotonic()))
        self._giving_up.set()
        self._writer.join(2 * _STORE_RETRY_S)
        return _abandon(self._jobs) + _abandon(self._judged) + self._unstored

    def settle(self) -> None:
        """Take what was acknowledged after `stop` out of the outbox; a store that refuses leaves it to be sent again."""
        with self._side_lock:
            acknowledged, self._acknowledged = self._acknowledged, []
        if acknowledged and not self._writer.is_alive():
            with contextlib.suppress(StoreError):
                self._store.commit([], acknowledged)

    # -- workers: frame → judged -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            item, waited = job.capture.item, {"queue": (time.perf_counter() - job.submitted) * 1e3}
            prediction: Prediction | None = None
            fault = item if isinstance(item, FrameFault) else None
            try:
                if isinstance(item, Frame):
                    prediction = self._inspector.predict(item)
            except Exception as error:
                log.exception("frame %s of camera %s could not be judged", item.frame_id, item.camera)
                fault = _as_fault(item, Reason.MODEL_FAULT, f"the model failed: {type(error).__name__}: {error}")
            judged = self._conclude(job, prediction, fault, waited)
            self._judged.put((job, judged))

    def _conclude(
        self, job: _Job, prediction: Prediction | None, fault: FrameFault | None, durations_ms: dict[str, float]
    ) -> Judged:
        judged = prediction if prediction is not None else fault
        verdict = decide([judged] if judged is not None else [], job.in_force.recipe)
        decided_at, verdict_id = utc_now(), str(uuid4())
        durations = durations_ms | (dict(prediction.durations_ms) if prediction is not None else {})
        durations["total"] = (decided_at - job.capture.item.captured_at).total_seconds() * 1e3
        evidence = None
        if self._evidence.wants(verdict.decision, verdict_id):
            started = time.perf_counter()
            evidence = self._save_evidence(job.capture.item)
            durations["evidence"] = (time.perf_counter() - started) * 1e3
        latency_ms = {stage: round(value, 3) for stage, value in durations.items()}
        return Judged(job.capture, verdict_id, verdict, prediction, evidence, decided_at, latency_ms)

    def _save_evidence(self, item: Frame | FrameFault) -> Evidence | None:
        try:
            evidence = self._evidence.save(item)
        except (OSError, ImageError) as error:
            # The verdict matters more than its picture: it goes on without, and the gap is counted and logged.
            self._metrics.evidence_failures.inc()
            log.error("evidence of frame %s could not be kept: %s", item.frame_id, error)
            return None
        if evidence is not None:
            self._metrics.evidence_bytes.inc(evidence.size_bytes)
        return evidence

    # -- writer: judged → recorded ---------------------------------------------------------------------------------

    def _write(self) -> None:
        open_end = True
        while open_end:
            self.turns += 1
            batch, open_end = self._next_batch()
            try:
                self._commit(batch)
            except Exception as error:
                # A store that refuses was told of as line stop already; anything else is a defect, and wants its traceback.
                log.error("%d verdicts could not be stored", len(batch), exc_info=not isinstance(error, StoreError))
                pending = [job for job, _ in batch if not job.done.done()]
                self._unstored += len(pending)
                for job in pending:
                    job.done.set_exception(StationError(f"the verdict could not be stored: {error}"))

    def _next_batch(self) -> tuple[list[tuple[_Job, Judged]], bool]:
        """Return what to commit at once, and whether more may come.

        A part that came alone is committed alone, without delay. While frames wait for a worker, the line is behind
        anyhow, and parts are gathered for a moment: an fsync for several costs as much as an fsync for one.
        """
        batch: list[tuple[_Job, Judged]] = []
        try:
            entry = self._judged.get(timeout=_IDLE_S)
            gather_until = time.monotonic() + _GATHER_S
            while entry is not None:
                batch.append(entry)
                if len(batch) == _COMMIT_BATCH:
                    return batch, True
                rest_s = gather_until - time.monotonic()
                behind = rest_s > 0 and not self._jobs.empty()
                entry = self._judged.get(timeout=rest_s) if behind else self._judged.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False

    def _commit(self, batch: list[tuple[_Job, Judged]]) -> None:
        with self._side_lock:
            acknowledged, self._acknowledged = self._acknowledged, []
            forgotten, self._forgotten = self._forgotten, []
        if not (batch or acknowledged or forgotten):
            return
        started = time.perf_counter()
        rows = [self._as_row(judged, job.in_force.provenance) for job, judged in batch]
        without_evidence = [sequence for group, _ in forgotten for sequence in group]
        recorded = self._commit_when_possible(rows, acknowledged, without_evidence)
        for _, done in forgotten:
            done.set()
        if not batch:
            return
        self._on_commit()
        self._metrics.stage_seconds.labels("commit").observe(time.perf_counter() - started)
        for (job, judged), entry in zip(batch, recorded, strict=True):
            if entry.repeated:
                self._drop_evidence(judged.evidence)
            else:
                self._count(judged)
                self._live.recorded(judged, entry)
            job.done.set_result(entry)

    def _drop_evidence(self, evidence: Evidence | None) -> None:
        """Delete the picture of a part that had its verdict already, unless another verdict has the same picture."""
        if evidence is not None and not self._store.knows_evidence(evidence.name):
            self._evidence.path_of(evidence.name).unlink(missing_ok=True)

    def _commit_when_possible(self, rows: list[NewVerdict], acknowledged: list[int], forgotten: list[int]) -> list[Recorded]:
        while True:
            self.turns += 1  # a line stop is no hang: a restart would not make room on the disk
            try:
                recorded = self._store.commit(rows, acknowledged, forgotten)
            except StoreError as error:
                if self._live.line_stop is None:
                    log.error("line stop: verdicts cannot be stored: %s", error)
                self._live.set_line_stop(str(error))
                self._metrics.line_stop.set(1)
                if self._giving_up.wait(_STORE_RETRY_S):
                    raise
            else:
                if self._live.line_stop is not None:
                    log.warning("line stop is over: verdicts are stored again")
                    self._live.set_line_stop(None)
                    self._metrics.line_stop.set(0)
                return recorded

    def _count(self, judged: Judged) -> None:
        verdict = judged.verdict
        self._metrics.parts.labels(verdict.decision).inc()
        if verdict.decision is Decision.UNDECIDED:
            self._metrics.undecided.labels(verdict.reason).inc()
        for stage, milliseconds in judged.latency_ms.items():
            self._metrics.stage_seconds.labels(stage).observe(milliseconds / 1e3)

    def _as_row(self, judged: Judged, provenance: MessageProvenance) -> NewVerdict:
        return NewVerdict(
            verdict_id=judged.verdict_id,
            serial=judged.capture.part.serial,
            decision=judged.verdict.decision,
            decided_at=judged.decided_at.isoformat(),
            message=functools.partial(self._message, judged, provenance),
            origin=judged.capture.origin,
            evidence=judged.evidence,
        )

    def _message(self, judged: Judged, provenance: MessageProvenance, sequence: int) -> str:
        return verdict_message(
            judged, sequence, station=self._live.station, boot_id=self._live.boot_id, provenance=provenance
        ).model_dump_json()


def _as_fault(item: Frame | FrameFault, reason: Reason, detail: str) -> FrameFault:
    return FrameFault(
        reason, detail, item.frame_id, item.camera, item.view, item.sequence, item.captured_at, item.encoded, item.media_type
    )


def _put_before(target: queue.Queue[Any], deadline: float) -> None:
    """Put the end mark, unless the queue stays full past the deadline: then its threads end with the process."""
    with contextlib.suppress(queue.Full):
        target.put(None, timeout=max(0.01, deadline - time.monotonic()))


def _abandon(source: queue.Queue[Any]) -> int:
    """Fail the futures of what is left in a queue, and return how many there were."""
    count = 0
    with contextlib.suppress(queue.Empty):
        while True:
            entry = source.get_nowait()
            job = entry[0] if isinstance(entry, tuple) else entry
            if job is not None:
                count += 1
                job.done.set_exception(StationError("the station stopped before the part was judged"))
    return count
