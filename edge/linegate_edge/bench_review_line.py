"""What the line loses while ten people review and a page looks on.

A station judges frames as fast as it can, as in `bench line`. Periods without and with people take turns, in pairs whose order
changes, so that a machine that slows down is unfair to both. The people are a process of their own, at `nice 19`: ten who each
second fetch a picture and decide its part, borrowed two dozen at once as the page does; and a page that asks for the live state
ten times a second.

On a small machine that process takes from the line what on a plant's machine would be computed elsewhere, before people. So
three things are told: the loss as it was; the loss by CPU time, which counts frames for each CPU second of the station's own
process, and so leaves the people's process out; and the CPU milliseconds that one review, with its share of the page's
questions, costs the station.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from linegate.errors import StationError
from linegate_edge.bench_review_people import Login, Person, log_in
from linegate_edge.bench_station import BenchStation, Load, bench_station

PEOPLE: Final = 10
PAIRS: Final = 10
_BORROWED: Final = 24
_PERIOD_S: Final = 8.0
_SETTLE_S: Final = 0.5
_FAIL_SHARE: Final = 0.12
_WAITING_FIRST: Final = 120
_POLL_EVERY_S: Final = 0.1
_PATIENCE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class _Period:
    """What one period gave: frames, seconds, CPU seconds of the station's process; and of the people, where they were there."""

    frames: int
    seconds: float
    cpu_s: float
    people: dict[str, Any] | None

    @property
    def rate(self) -> float:
        return self.frames / self.seconds


def measure_line(
    package: Path, tell: Callable[[str], None], *, pairs: int = PAIRS, period_s: float = _PERIOD_S
) -> dict[str, Any]:
    """Return frames a second without and with people, and what they cost.

    Raises:
        StationError: the people's process does not answer, or there was nothing for them to decide.
    """
    with bench_station(Load(package, fail_share=_FAIL_SHARE)) as bench:
        logins = [log_in(bench.station, f"reviewer-{number}") for number in range(PEOPLE)]
        feeder = _Feeder(bench)
        people = _People(logins)
        try:
            tell("filling the queue")
            _fill_queue(bench)
            periods: list[tuple[_Period, _Period]] = []
            for number in range(pairs):
                tell(f"pair {number + 1} of {pairs}")
                first, second = (
                    _period(feeder, people if busy else None, period_s) for busy in (number % 2 == 1, number % 2 == 0)
                )
                periods.append((second, first) if number % 2 else (first, second))
        finally:
            people.close()
            feeder.stop()
    return _result(periods)


def _fill_queue(bench: BenchStation) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with bench.station.reviews.database.look() as db:
            waiting = next(iter(db.execute("SELECT count(*) FROM part WHERE queued IS NOT NULL AND disposition IS NULL")))[0]
        if waiting >= _WAITING_FIRST:
            return
        if time.monotonic() > deadline:
            raise StationError("no parts wait for a decision: too few frames of this package fail")
        time.sleep(0.2)


class _Feeder(threading.Thread):
    """Brings frames before the line as fast as it takes them, and counts verdicts."""

    def __init__(self, bench: BenchStation) -> None:
        super().__init__(name="feeder", daemon=True)
        self._bench, self._stopping = bench, threading.Event()
        self._lock, self._count = threading.Lock(), 0
        self.start()

    def run(self) -> None:
        while not self._stopping.is_set():
            self._bench.submit().add_done_callback(self._note)

    def _note(self, _: object) -> None:
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        with self._lock:
            return self._count

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def _period(feeder: _Feeder, people: _People | None, period_s: float) -> _Period:
    if people is not None:
        people.begin()
    time.sleep(_SETTLE_S)
    frames, wall, cpu = feeder.count, time.perf_counter(), time.process_time()
    time.sleep(period_s)
    frames, seconds, cpu_s = feeder.count - frames, time.perf_counter() - wall, time.process_time() - cpu
    done = None if people is None else people.end()
    return _Period(frames, seconds, cpu_s, done)


class _People:
    """The process in which people are."""

    def __init__(self, logins: list[Login]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(theirs, logins), daemon=True)
        self._process.start()
        self._answer()

    def begin(self) -> None:
        self._pipe.send("begin")
        self._answer()

    def end(self) -> dict[str, Any]:
        self._pipe.send("end")
        answer: dict[str, Any] = self._answer()
        return answer

    def close(self) -> None:
        self._process.terminate()
        self._process.join()

    def _answer(self) -> Any:
        if not self._pipe.poll(_PATIENCE_S):
            raise StationError(f"the benchmark's reviewers did not answer within {_PATIENCE_S:g} s")
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise StationError(answer)
        return answer


def _live(pipe: Any, logins: list[Login]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark itself ends this process
    os.nice(19)
    pipe.send({})
    while True:
        pipe.recv()
        stopping = threading.Event()
        reviews: list[float] = []
        troubles: list[str] = []
        begun, started = _cpu_s(), time.perf_counter()
        tasks = [
            threading.Thread(target=_review, args=(login, number / len(logins), stopping, reviews, troubles))
            for number, login in enumerate(logins)
        ]
        tasks.append(threading.Thread(target=_poll, args=(logins[0], stopping, troubles)))
        for task in tasks:
            task.start()
        pipe.send({})
        pipe.recv()
        stopping.set()
        for task in tasks:
            task.join()
        if troubles:
            pipe.send(troubles[0])
            continue
        pipe.send({"reviews_ms": reviews, "cpu_s": _cpu_s() - begun, "seconds": time.perf_counter() - started})


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _review(login: Login, after_s: float, stopping: threading.Event, taken: list[float], troubles: list[str]) -> None:
    person, due = Person(login), time.monotonic() + after_s
    reader = f"bench-{login.csrf[:16]}"
    borrowed: list[dict[str, Any]] = []
    try:
        while not stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1.0, time.monotonic())
            started = time.perf_counter()
            if not borrowed:  # as the page does: many at once, with all that is known of them
                wanted = {"reader": reader, "limit": _BORROWED, "details": True}
                borrowed = person.get("POST", "/api/v1/queue/lend", wanted)["details"]
            if not borrowed:
                continue
            part = borrowed.pop(0)
            uri = part["looks"][0]["picture_uri"]
            status, _ = person.ask("GET", uri)
            if status != 200:
                raise StationError(f"{uri} was answered {status}")
            body = {"disposition": "confirmed", "follows": part["part"]["decision_number"]}
            person.get("POST", f"/api/v1/parts/{part['part']['verdict_id']}/decision", body)
            taken.append((time.perf_counter() - started) * 1e3)
    except (StationError, OSError) as error:
        troubles.append(f"a reviewer of the benchmark: {error}")
    finally:
        person.close()


def _poll(login: Login, stopping: threading.Event, troubles: list[str]) -> None:
    person = Person(login)
    try:
        while not stopping.wait(_POLL_EVERY_S):
            person.get("GET", "/live/state")
    except (StationError, OSError) as error:
        troubles.append(f"the benchmark's page: {error}")
    finally:
        person.close()


def _result(periods: Sequence[tuple[_Period, _Period]]) -> dict[str, Any]:
    reviews = [len(busy.people["reviews_ms"]) for _, busy in periods if busy.people is not None]
    if not all(reviews):
        raise StationError("there was nothing for the reviewers to decide")
    took = [ms for _, busy in periods if busy.people is not None for ms in busy.people["reviews_ms"]]
    seconds = [busy.people["seconds"] for _, busy in periods if busy.people is not None]
    theirs = [busy.people["cpu_s"] for _, busy in periods if busy.people is not None]
    raw = [1 - busy.rate / quiet.rate for quiet, busy in periods]
    by_cpu = [1 - (busy.frames / busy.cpu_s) / (quiet.frames / quiet.cpu_s) for quiet, busy in periods]
    # Of the time in which they reviewed, the period is a part.
    each = [
        (busy.cpu_s - busy.frames * quiet.cpu_s / quiet.frames) / (count * busy.seconds / whole)
        for (quiet, busy), count, whole in zip(periods, reviews, seconds, strict=True)
    ]
    return {
        "people": PEOPLE,
        "pairs": len(periods),
        "quiet_per_second": round(statistics.median(quiet.rate for quiet, _ in periods), 1),
        "busy_per_second": round(statistics.median(busy.rate for _, busy in periods), 1),
        "reviews_per_second": round(sum(reviews) / sum(seconds), 2),
        "review_p95_ms": round(float(np.percentile(took, 95)), 1),
        "loss": _shares(raw),
        "loss_by_cpu_time": _shares(by_cpu),
        "station_cpu_ms_per_review": round(statistics.median(each) * 1e3, 2),
        "people_cpu_share_of_machine": round(sum(theirs) / sum(seconds) / (os.cpu_count() or 1), 4),
    }


def _shares(values: Sequence[float]) -> dict[str, float]:
    low, high = median_interval(values)
    return {"median": round(statistics.median(values), 4), "low": round(low, 4), "high": round(high, 4)}


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval for the median by order statistics, free of any distribution; all values where they are few.

    Source: the number of values below the median is binomial with p = 1/2.
    """
    ranked, count = sorted(values), len(values)
    rank = 0  # the interval from the rank-th smallest to the rank-th largest, counted from 0
    tail = 0.5**count
    while rank + 1 < count - 1 - rank and 1 - 2 * (more := tail + math.comb(count, rank + 1) * 0.5**count) >= confidence:
        rank, tail = rank + 1, more
    return ranked[rank], ranked[-1 - rank]
