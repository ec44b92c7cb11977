"""Queue, search and Pareto with many parts stored: what a reviewer's question takes, from the request to the whole answer.

A store is filled with verdict messages as the station writes them, over the last thirty days: one in twenty failed, six defect
classes of which the last is rare, 200 batches; the station's own index takes them in. Of what was asked about, half is
decided. Then a station runs on that store, and somebody who is logged in asks it over one connection, one question after the
other: what is measured holds the checks of access, the query, and the answer's JSON. Only the filling is other than the
station's: large transactions, and decisions that have no line in the audit trail.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np

from linegate_edge.bench_review_people import Person, log_in
from linegate_edge.bench_store import FAIL_EVERY, new_verdict, serial_of
from linegate_edge.changes import Changes
from linegate_edge.message import utc_now
from linegate_edge.review.reviews import Reviews
from linegate_edge.settings import (
    EvidenceSection,
    HttpSection,
    ModelSection,
    MqttSection,
    ReviewSection,
    StationSection,
    StationSettings,
)
from linegate_edge.station import Station
from linegate_edge.store import Store

REQUESTS: Final = 200
_TOPIC: Final = "linegate/bench/bench/bench/review"
_DAYS: Final = 30
_BATCHES: Final = 200
_CLASSES: Final = ("crack", "scratch", "dent", "stain", "pore", "burr")
_FILL: Final = 20_000
_FILL_CACHE_KIB: Final = 512 * 1024
_AUDIT_SHARE: Final = 0.02
Ask = tuple[str, str, object]


def measure_questions(folder: Path, package: Path, parts: int, broker_port: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Fill a store in `folder` and return what each question takes, milliseconds: median, 95 % and 99 %."""
    settings = StationSettings(
        station=StationSection(topic=_TOPIC, store=folder),
        model=ModelSection(package=package, workers=1),
        mqtt=MqttSection(port=broker_port),
        evidence=EvidenceSection(min_free_mib=0),
        http=HttpSection(port=0),
        review=ReviewSection(audit_share=_AUDIT_SHARE),
    )
    until = utc_now()
    tell(f"filling a store with {parts:,} parts")
    fill_seconds = _fill(folder, parts, until)
    tell("the index takes them in")
    index_seconds, waiting = _index(folder, settings.review)
    station = Station(settings)
    person = Person(log_in(station, "reviewer"))  # the first one, so that the station makes no first admin
    station.start()
    try:
        tell("asking")
        taken = {}
        for name, asks in _questions(parts, until).items():
            taken[name] = _timed(person, asks)
        person.close()
    finally:
        station.stop()
    return {
        "parts": parts,
        "waiting": waiting,
        "fill_seconds": round(fill_seconds, 1),
        "index_parts_per_second": round(parts / index_seconds),
        "milliseconds": taken,
    }


def _fill(folder: Path, parts: int, until: datetime) -> float:
    started = time.perf_counter()
    pace = timedelta(days=_DAYS) / parts
    store = Store(folder, _TOPIC)
    try:
        store.widen_cache(_FILL_CACHE_KIB)
        for first in range(0, parts, _FILL):
            numbers = range(first, min(first + _FILL, parts))
            fresh = [new_verdict(number, until - (parts - number) * pace, _words(number, parts)) for number in numbers]
            done = store.commit(Changes(fresh))
            store.commit(Changes(acknowledged=[recorded.sequence for recorded in done]))
    finally:
        store.close()
    return time.perf_counter() - started


def _words(number: int, parts: int) -> dict[str, str]:
    """Return class and batch of a part."""
    reject = number // FAIL_EVERY
    # The last class is one reject in a thousand.
    name = _CLASSES[-1] if reject % 1000 == 999 else _CLASSES[reject % (len(_CLASSES) - 1)]
    return {'"crack"': f'"{name}"', '"B-12"': f'"{batch_of(number, parts)}"'}


def batch_of(number: int, parts: int) -> str:
    """Return the batch of a part: batches follow each other."""
    return f"B-{number * _BATCHES // parts:03d}"


def _index(folder: Path, settings: ReviewSection) -> tuple[float, int]:
    """Return the seconds that the index took, and how many parts wait once half of the queue is decided."""
    reviews = Reviews(folder, settings)
    try:
        started = time.perf_counter()
        reviews.index.catch_up()
        seconds = time.perf_counter() - started
        with reviews.database.change() as db:
            db.execute(
                "INSERT INTO decision (sequence, verdict_id, disposition, defect_class, regions, comment, by, at, previous) "
                "SELECT sequence, verdict_id, CASE WHEN decision = 'pass' THEN iif(sequence % 40 = 3, 'escape', 'confirmed') "
                "ELSE iif(sequence % 3 = 0, 'false_reject', 'confirmed') END, defect_class, '[]', '', 'reviewer', "
                "decided_at, NULL FROM part WHERE queued IS NOT NULL AND sequence / 20 % 2 = 1"
            )
            db.execute(
                "UPDATE part SET disposition = d.disposition, decided_class = d.defect_class, decision_number = d.number "
                "FROM decision d WHERE d.sequence = part.sequence"
            )
        with reviews.database.look() as db:
            count = next(iter(db.execute("SELECT count(*) FROM part WHERE queued IS NOT NULL AND disposition IS NULL")))[0]
    finally:
        reviews.close()
    return seconds, count


def _questions(parts: int, until: datetime) -> dict[str, list[Ask]]:
    draw = random.Random(parts)

    def search(**wanted: object) -> Ask:
        return "GET", f"/api/v1/parts?{urlencode(wanted)}", None

    def lend(**wanted: object) -> Ask:
        # Each time another reader, who gets other parts: the case with the most parts lent to others.
        return "POST", "/api/v1/queue/lend", {"reader": f"bench-{draw.randrange(12):04d}", "limit": 24, **wanted}

    def pareto(by: str) -> Ask:
        return "GET", f"/api/v1/quality/pareto?{urlencode({'by': by, 'days': draw.randint(1, _DAYS)})}", None

    def number() -> int:
        return draw.randrange(parts)

    def hour() -> dict[str, str]:
        since = until - timedelta(days=_DAYS) * draw.random()
        return {"since": since.isoformat(), "until": (since + timedelta(hours=1)).isoformat()}

    dispositions = ("confirmed", "false_reject", "escape", "none")
    makers: dict[str, Callable[[], Ask]] = {
        "queue": lend,
        "queue, audit sample": lambda: lend(kind="audit"),
        "queue, a class": lambda: lend(defect_class=draw.choice(_CLASSES), order=draw.choice(("newest", "oldest"))),
        "search, first page": search,
        "search, serial": lambda: search(serial=serial_of(number())),
        "search, class": lambda: search(defect_class=draw.choice(_CLASSES)),
        "search, class and hour": lambda: search(defect_class=draw.choice(_CLASSES), **hour()),
        "search, hour": lambda: search(**hour()),
        "search, disposition": lambda: search(disposition=draw.choice(dispositions)),
        "search, batch": lambda: search(batch=batch_of(number(), parts)),
        "search, rejects of a batch": lambda: search(batch=batch_of(number(), parts), decision="fail"),
        "Pareto, class": lambda: pareto("defect_class"),
        "Pareto, shift": lambda: pareto("shift"),
        "Pareto, batch": lambda: pareto("batch"),
        "choices": lambda: ("GET", "/api/v1/choices", None),
    }
    return {name: [make() for _ in range(REQUESTS)] for name, make in makers.items()}


def _timed(person: Person, asks: list[Ask]) -> dict[str, float]:
    """Return median, 95 % and 99 % in milliseconds, and how many rows an answer has in the median."""
    taken, rows = [], []
    for method, path, body in asks:
        started = time.perf_counter()
        answer = person.get(method, path, body)
        taken.append((time.perf_counter() - started) * 1e3)
        rows.append(len(answer.get("items", answer.get("bars", answer.get("defect_classes", ())))))
    p50, p95, p99 = (round(float(value), 2) for value in np.percentile(taken, (50, 95, 99)))
    return {"p50": p50, "p95": p95, "p99": p99, "rows": float(np.median(rows))}
