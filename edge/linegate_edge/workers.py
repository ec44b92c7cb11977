"""Frames that wait for a model, and the threads that judge them: the nearest deadline first.

Rules kept here: no more frames wait than the limit says; a worker whose model does not come back is given up and another
takes its place, so that one bad frame does not stop the line; what a job does, and what becomes of its part, is the line's to
say.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

log = logging.getLogger("linegate.line")
_MAX_GIVEN_UP: Final = 16
_END: Final = float("inf")


@dataclass(order=True, slots=True)
class Job:
    """What a worker does, by `due` (seconds of `time.monotonic`); `hung` is called, once, if it takes too long."""

    due: float
    number: int
    run: Callable[[], None] = field(compare=False)
    hung: Callable[[float], None] = field(compare=False)


class Workers:
    """Threads that run jobs; `watch` must be called now and then, and finds those that hang."""

    def __init__(self, count: int, max_waiting: int, timeout_s: float) -> None:
        self.max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._jobs: queue.PriorityQueue[Job] = queue.PriorityQueue()
        self._places = 0
        self._room = threading.Condition(threading.Lock())
        self._numbers = itertools.count()
        self._names = itertools.count()
        self._given_up = 0
        self._threads = [self._make() for _ in range(count)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many frames wait for a worker."""
        return self._jobs.qsize()

    @property
    def alive(self) -> bool:
        """Say whether all threads run, and not too many were given up: then only a new process helps."""
        return self._given_up <= _MAX_GIVEN_UP and all(thread.is_alive() for thread in self._threads)

    def reserve(self, timeout_s: float) -> bool:
        """Take one of the places to wait in, within `timeout_s`; each place taken must be used by `put`, or given back."""
        with self._room:
            if self._places >= self.max_waiting and not self._room.wait_for(
                lambda: self._places < self.max_waiting, max(0.0, timeout_s)
            ):
                return False
            self._places += 1
            return True

    def release(self) -> None:
        """Give a place back that `reserve` took.

        Who waits for one is woken when half of them are free: to wake a thread for each frame costs more than the frame's
        way through the rest of the line.
        """
        with self._room:
            self._places -= 1
            if self._places <= self.max_waiting // 2:
                self._room.notify_all()

    def put(self, due: float, run: Callable[[], None], hung: Callable[[float], None]) -> None:
        """Have a job run, in the order of `due`, on a place that was reserved before."""
        self._jobs.put(Job(due, next(self._numbers), run, hung))

    def watch(self) -> None:
        """Put a new thread in the place of each that has been at one job for too long."""
        now = time.monotonic()
        for index, thread in enumerate(self._threads):
            if thread.is_alive() and thread.hangs(now, self._timeout_s):
                self._given_up += 1
                log.error("a model has not come back for %g s; its worker is replaced", self._timeout_s)
                job = thread.give_up()
                self._threads[index] = self._make()
                self._threads[index].start()
                if job is not None:
                    job.hung(self._timeout_s)

    def end(self) -> None:
        """Have the threads end when nothing waits any more."""
        for _ in self._threads:
            self._jobs.put(Job(_END, next(self._numbers), _nothing, _ignore))

    def join(self, deadline: float) -> bool:
        """Wait until the threads have ended or `deadline` (monotonic) has passed; say whether they have."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _make(self) -> _Worker:
        return _Worker(f"worker-{next(self._names)}", self._jobs, self.release)


class _Worker(threading.Thread):
    def __init__(self, name: str, jobs: queue.PriorityQueue[Job], release: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._jobs, self._release = jobs, release
        self._lock = threading.Lock()
        self._at: tuple[Job, float] | None = None
        self._given_up = False

    def hangs(self, now: float, timeout_s: float) -> bool:
        at = self._at
        return at is not None and now - at[1] > timeout_s

    def give_up(self) -> Job | None:
        """Have this thread end when its job comes back, if ever; return the job."""
        with self._lock:
            self._given_up = True
            return self._at[0] if self._at is not None else None

    def run(self) -> None:
        while True:
            job = self._jobs.get()
            if job.due == _END:
                return
            self._release()
            self._at = job, time.monotonic()
            job.run()
            with self._lock:
                self._at = None
                if self._given_up:
                    return


def _nothing() -> None: ...


def _ignore(_: float) -> None: ...
