"""`linegate bench latency`: from the frame to the broker's acknowledgement, with the line partly loaded.

Capacity first: what the whole chain does a second when parts wait. Then parts come at a fixed pace, as on a conveyor, at a
share of that. Each part's time runs from when it was due to the PUBACK of its verdict; it is compared with the median of bare
inference, one frame at a time, measured in the same run.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Final

import numpy as np

from linegate.errors import SettingsError, StationError
from linegate_edge.bench_line import run_chain
from linegate_edge.bench_station import BenchStation, Load, bench_station

_CAPACITY_PARTS: Final = 400
_BARE_FRAMES: Final = 200
_ACK_PATIENCE_S: Final = 60.0


def run_bench_latency(load: Load, *, parts: int, share: float, as_json: bool) -> int:
    """Measure, print, and return the exit status.

    Raises:
        SettingsError: `share` does not lie between 0 and 1.
        LinegateError: the package, the frames or the broker cannot be used.
    """
    if not 0 < share < 1:
        raise SettingsError(f"--load must lie between 0 and 1, got {share:g}")
    with bench_station(load) as bench:
        run_chain(bench, bench.workers * 4)
        bare_ms = _bare_ms(bench)
        seconds, _ = run_chain(bench, _CAPACITY_PARTS)
        capacity = _CAPACITY_PARTS / seconds
        latency_ms = _paced(bench, parts, 1 / (capacity * share))
        bare_ms = np.concatenate([bare_ms, _bare_ms(bench)])  # before and after, for the machine is not always the same
    median = float(np.median(bare_ms))
    p50, p99 = (float(value) for value in np.percentile(latency_ms, (50, 99)))
    result: dict[str, Any] = {
        "parts": parts,
        "load": share,
        "capacity_per_second": round(capacity, 1),
        "bare_median_ms": round(median, 3),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "p99_over_bare_median": round(p99 / median, 2),
    }
    if as_json:
        print(json.dumps(result))
    else:
        print(f"capacity             {capacity:>9.1f} parts/s; {parts} parts at {share:.0%} of it")
        print(f"bare inference       {median:>9.3f} ms (median)")
        print(f"frame to PUBACK      {p50:>9.3f} ms (median), {p99:.3f} ms (99 %): {p99 / median:.2f} times bare")
    return 0


def _bare_ms(bench: BenchStation) -> np.ndarray[Any, np.dtype[np.float64]]:
    times = np.empty(_BARE_FRAMES)
    for index in range(_BARE_FRAMES):
        pixels = bench.prepared[index % len(bench.prepared)]
        started = time.perf_counter()
        bench.inspector.run(pixels)
        times[index] = (time.perf_counter() - started) * 1e3
    return times


def _paced(bench: BenchStation, parts: int, every_s: float) -> list[float]:
    """Return the milliseconds from `submit` to PUBACK of parts that come at a fixed pace."""
    acknowledged: dict[int, float] = {}
    all_there = threading.Event()

    def note(sequence: int) -> None:
        acknowledged[sequence] = time.perf_counter()
        if len(acknowledged) >= parts:
            all_there.set()

    bench.station.publisher.on_puback = note
    started: list[float] = []
    futures = []
    due = time.perf_counter()
    for _ in range(parts):
        while (rest_s := due - time.perf_counter()) > 0:
            time.sleep(rest_s)
        # From when the part was due, not from when this thread got round to it: a late start is the line's delay too.
        started.append(due)
        futures.append(bench.submit(wait=False))
        due += every_s
    sequences = [future.result().sequence for future in futures]
    if not all_there.wait(_ACK_PATIENCE_S):
        raise StationError(f"the broker did not acknowledge all verdicts within {_ACK_PATIENCE_S:g} s")
    return [(acknowledged[sequence] - begun) * 1e3 for sequence, begun in zip(sequences, started, strict=True)]
