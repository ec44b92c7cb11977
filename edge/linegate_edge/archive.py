"""Judged parts → their evidence on disk, off the path of the frames, → the writer.

Rules kept here: a picture lies on the disk before the verdict that names it is committed; a picture that cannot be kept
costs the verdict nothing, and is counted and logged; when pictures come faster than the disk takes them, who judged the part
writes them itself, and the line becomes as slow as its disk instead of losing evidence.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Final

from linegate.errors import ImageError
from linegate.stages import Frame
from linegate_edge.changes import Trace
from linegate_edge.evidence import EvidenceFolder
from linegate_edge.metrics import Metrics
from linegate_edge.records import Judged, Look, Recorded
from linegate_edge.sampling import asks_about
from linegate_edge.settings import ReviewSection
from linegate_edge.traces import trace_of

log = logging.getLogger("linegate.line")
_WAITING: Final = 32


class Archive(threading.Thread):
    """Keeps the pictures of parts that want them, then hands the parts on by `forward`."""

    def __init__(
        self,
        evidence: EvidenceFolder,
        review: ReviewSection,
        metrics: Metrics,
        forward: Callable[[Judged, Future[Recorded]], None],
    ) -> None:
        super().__init__(name="archive", daemon=True)
        self.review = review
        self._evidence, self._metrics, self._forward = evidence, metrics, forward
        self._parts: queue.SimpleQueue[tuple[Judged, Future[Recorded]] | None] = queue.SimpleQueue()

    def put(self, judged: Judged, done: Future[Recorded], *, may_wait: bool) -> None:
        """Take a part and the future of its verdict; who may wait does the work itself when too many wait already."""
        if not self._wanted(judged):
            self._forward(judged, done)
        elif may_wait and self._parts.qsize() >= _WAITING:
            self._forward(self._kept(judged), done)
        else:
            self._parts.put((judged, done))

    def _wanted(self, judged: Judged) -> bool:
        verdict = judged.verdict
        if self._evidence.wants(verdict.decision, judged.verdict_id):
            return True
        scores = [(view.score, view.threshold) for view in verdict.views]
        shares = {"close_share": self.review.close_share, "audit_share": self.review.audit_share}
        return asks_about(verdict.decision, judged.verdict_id, scores, **shares) is not None

    def end(self) -> None:
        """Have the thread end when it has done all that it took."""
        self._parts.put(None)

    def run(self) -> None:
        """Keep pictures until the end."""
        while (entry := self._parts.get()) is not None:
            self._forward(self._kept(entry[0]), entry[1])

    def _kept(self, judged: Judged) -> Judged:
        started = time.perf_counter()
        looks = tuple(self._keep(look, judged) for look in judged.looks)
        spent_ms = round((time.perf_counter() - started) * 1e3, 3)
        return replace(judged, looks=looks, latency_ms={**judged.latency_ms, "evidence": spent_ms})

    def _keep(self, look: Look, judged: Judged) -> Look:
        try:
            evidence = self._evidence.save(look.item)
        except (OSError, ImageError) as error:
            # The verdict matters more than its picture: it goes on without, and the gap is counted and logged.
            self._metrics.evidence_failures.inc()
            log.error("evidence of frame %s could not be kept: %s", look.item.frame_id, error)
            return look
        if evidence is not None:
            self._metrics.evidence_bytes.inc(evidence.size_bytes)
        return replace(look, evidence=evidence, trace=self._trace(look, judged))

    def _trace(self, look: Look, judged: Judged) -> Trace | None:
        if not isinstance(look.item, Frame) or look.prediction is None:
            return None
        try:
            manifest = judged.recipe.views[look.item.view].inspector.package.manifest
            return trace_of(look.item, look.prediction, manifest.thresholds.map)
        except Exception:
            # On the way of every verdict: whatever a map looks like, the part still gets the one that it was given.
            self._metrics.evidence_failures.inc()
            log.exception("heat map and thumbnail of frame %s could not be kept", look.item.frame_id)
            return None
