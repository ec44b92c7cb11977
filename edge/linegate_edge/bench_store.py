"""`linegate bench store`: what a store costs when it has grown.

A store is filled with messages as the station writes them, serials in no order, one in twenty not passed. At each power of
ten it is opened as the station opens it, and timed: verdicts by serial, pages of the read API, and commits of one verdict
each, with their fsync. Only the filling is other than the station's: large transactions, and a large page cache.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import numpy as np

from linegate import __version__
from linegate.errors import StationError
from linegate.stages import Decision, Reason
from linegate_edge.changes import Changes, NewVerdict
from linegate_edge.message import (
    SCHEMA_VERSION,
    MessagePart,
    MessageProvenance,
    MessageRegion,
    MessageTime,
    MessageView,
    VerdictMessage,
)
from linegate_edge.selection import Selection
from linegate_edge.store import Store, StoreReader

_TOPIC: Final = "linegate/bench/bench/bench/store"
_FIRST_STEP: Final = 100_000
_BATCH: Final = 20_000
_FILL_CACHE_KIB: Final = 512 * 1024
_SAMPLES: Final = 200
_PAGE: Final = 100
FAIL_EVERY: Final = 20
_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_PACE: Final = timedelta(milliseconds=500)
_WHAT: Final = {
    "serial": "verdicts of a serial",
    "newest": f"newest page of {_PAGE}",
    "oldest": f"page of {_PAGE} from somewhere on",
    "rejects": f"page of {_PAGE} that failed",
    "hour": f"page of {_PAGE} of one hour",
    "commit": "commit of a verdict",
}


def run_bench_store(*, rows: int, folder: Path | None, as_json: bool) -> int:
    """Fill a store to `rows` verdicts in a temporary folder inside `folder`, measure, print, and return the exit status.

    Raises:
        LinegateError: the folder cannot be written, or the disk is full.
    """
    steps = [step for step in (_FIRST_STEP * 10**power for power in range(5)) if step + _SAMPLES < rows] + [rows]
    results = []
    try:
        with tempfile.TemporaryDirectory(prefix="linegate-bench-", dir=folder) as name:
            made = 0
            for step in steps:
                seconds = _fill(Path(name), made, step)
                results.append(_measure(Path(name), step) | {"fill_rows_per_second": round((step - made) / seconds)})
                made = step + _SAMPLES  # what the timed commits have put in
                if not as_json:
                    _print(results[-1])
    except OSError as error:
        raise StationError(f"{folder or tempfile.gettempdir()}: no store can be made here: {error.strerror}") from error
    if as_json:
        print(json.dumps({"steps": results}))
    return 0


def serial_of(number: int) -> str:
    """Return the serial of a part; they come in no order, which is the worst case for an index."""
    return f"FL-{hashlib.blake2b(number.to_bytes(8), digest_size=6).hexdigest().upper()}"


def _new(number: int) -> NewVerdict:
    return new_verdict(number, _START + number * _PACE)


def new_verdict(number: int, decided: datetime, words: Mapping[str, str] = MappingProxyType({})) -> NewVerdict:
    """Return the verdict of a part as the station would write it; `words` are put for others in its message.

    One in twenty failed, by its number.
    """
    failed = number % FAIL_EVERY == 0
    verdict_id = str(UUID(bytes=hashlib.blake2b(number.to_bytes(8), digest_size=16).digest()))
    before, between, after = _FAILED if failed else _PASSED
    stamp = decided.isoformat().replace("+00:00", "Z")

    def message(sequence: int) -> str:
        # Filled in as text: a message built anew would take longer than the row that is measured.
        part = after.replace(_SERIAL, serial_of(number)).replace(_TIME, stamp)
        for word, other in words.items():
            part = part.replace(word, other)
        return f"{before}{verdict_id}{between}{sequence}{part}"

    decision = Decision.FAIL if failed else Decision.PASS
    return NewVerdict(verdict_id, serial_of(number), decision, decided.isoformat(), message)


def _fill(folder: Path, made: int, rows: int) -> float:
    started = time.perf_counter()
    store = Store(folder, _TOPIC)
    try:
        store.widen_cache(_FILL_CACHE_KIB)
        for first in range(made, rows, _BATCH):
            fresh = [_new(number) for number in range(first, min(first + _BATCH, rows))]
            done = store.commit(Changes(fresh))
            store.commit(Changes(acknowledged=[recorded.sequence for recorded in done]))
    finally:
        store.close()
    return max(time.perf_counter() - started, 1e-9)


def _measure(folder: Path, rows: int) -> dict[str, Any]:
    store = Store(folder, _TOPIC)
    reader = StoreReader(store.path)
    rng = np.random.default_rng(rows)
    numbers = [int(number) for number in rng.integers(0, rows, _SAMPLES)]
    try:
        times = {name: _timed(asked) for name, asked in _questions(reader, numbers).items()}
        times["commit"] = _timed(partial(store.commit, Changes([_new(number)])) for number in range(rows, rows + _SAMPLES))
        size = store.path.stat().st_size
    finally:
        reader.close()
        store.close()
    return {"rows": rows, "size_mib": round(size / 2**20, 1), "milliseconds": times}


def _questions(reader: StoreReader, numbers: list[int]) -> Mapping[str, Iterator[Callable[[], object]]]:
    def page(selection: Selection, after: int | None = None, newest_first: bool = True) -> Callable[[], object]:
        return lambda: reader.page(selection, newest_first=newest_first, after=after, limit=_PAGE)

    def hour(number: int) -> Selection:
        since = _START + number * _PACE
        return Selection(since=since, until=since + timedelta(hours=1))

    return {
        "serial": (page(Selection(serial=serial_of(number))) for number in numbers),
        "newest": (page(Selection()) for _ in numbers),
        "oldest": (page(Selection(), number, newest_first=False) for number in numbers),
        "rejects": (page(Selection(decision=Decision.FAIL), number) for number in numbers),
        "hour": (page(hour(number), newest_first=False) for number in numbers),
    }


def _timed(calls: Iterator[Callable[[], object]]) -> dict[str, float]:
    """Return median and 99th percentile of what the calls take, milliseconds."""
    taken = []
    for call in calls:
        started = time.perf_counter()
        call()
        taken.append((time.perf_counter() - started) * 1e3)
    return {"p50": round(float(np.percentile(taken, 50)), 3), "p99": round(float(np.percentile(taken, 99)), 3)}


def _print(result: dict[str, Any]) -> None:
    head = f"{result['rows']:,} verdicts, {result['size_mib']:,.0f} MiB, filled at {result['fill_rows_per_second']:,} a second"
    print(head, flush=True)
    for name, text in _WHAT.items():
        taken = result["milliseconds"][name]
        print(f"  {text:<30} p50 {taken['p50']:>8.3f} ms   p99 {taken['p99']:>8.3f} ms", flush=True)


_ID, _SEQUENCE, _SERIAL, _TIME = str(UUID(int=1)), 123456789, "SERIAL", "2000-01-01T00:00:00Z"


def _template(decision: Decision) -> tuple[str, str, str]:
    """Return a message's JSON around its id and its sequence number."""
    moment = datetime(2000, 1, 1, tzinfo=UTC)
    failed = decision is Decision.FAIL
    reason = Reason.ABOVE_THRESHOLD if failed else Reason.BELOW_THRESHOLD
    text = f"score {4.93 if failed else 1.274} is {'at or above' if failed else 'below'} the threshold 4.759"
    digest = hashlib.sha256(b"package").hexdigest()
    region = MessageRegion(
        defect_class="crack", plant_code="Q-117", score=18.843, box_xyxy=(360, 101, 540, 327), area_px=26578, zone=None
    )
    view = MessageView(
        camera="top",
        view="main",
        frame_id=str(UUID(int=2)),
        image_uri=f"/evidence/{digest}.png" if failed else None,
        image_sha256=digest if failed else None,
        decision=decision,
        reason=reason,
        reason_text=text,
        score=4.93 if failed else 1.274,
        threshold=4.759,
        package="flange@1.0.0",
        package_digest=digest,
        regions=(region,) if failed else (),
    )
    message = VerdictMessage(
        schema_version=SCHEMA_VERSION,
        verdict_id=_ID,
        station=_TOPIC,
        boot_id=str(UUID(int=3)),
        sequence=_SEQUENCE,
        time=MessageTime(triggered=moment, captured=moment, decided=moment, published=None, clock_source="system"),
        part=MessagePart(
            serial=_SERIAL,
            serial_source="plc",
            type="FL-A",
            order="4711",
            batch="B-12",
            supplier_lot="L-2203",
            carrier=None,
            attempt=1,
        ),
        decision=decision,
        reason=reason,
        reason_text=text,
        mode="production",
        supersedes=None,
        views=(view,),
        provenance=MessageProvenance(
            recipe="flange",
            recipe_digest=digest,
            package="flange",
            package_version="1.0.0",
            package_digest=digest,
            threshold_version="package:1",
            software_version=__version__,
        ),
        latency_ms={"queue": 0.181, "prepare": 1.072, "inference": 10.378, "regions": 3.47, "total": 21.324, "evidence": 1.632},
    )
    before, _, rest = message.model_dump_json().partition(_ID)
    between, _, after = rest.partition(str(_SEQUENCE))
    return before, between, after


_PASSED, _FAILED = _template(Decision.PASS), _template(Decision.FAIL)
