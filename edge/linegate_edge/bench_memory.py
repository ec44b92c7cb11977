"""`linegate bench memory`: does the station grow over many parts?

Parts go through the whole chain, with the broker and the store, as fast as it takes them, a few in hand at a time.
What is resident is read from the kernel at equal steps. The first tenth fills caches and pools; growth is what comes after.
"""

from __future__ import annotations

import collections
import gc
import json
import os
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from linegate_edge.bench_station import BenchStation, Load, bench_station
from linegate_edge.records import Recorded

_STEPS: Final = 20
_IN_HAND: Final = 64


def run_bench_memory(load: Load, *, parts: int, as_json: bool) -> int:
    """Measure, print, and return the exit status.

    Raises:
        LinegateError: the package, the frames or the broker cannot be used.
    """
    resident: list[float] = []
    started = time.perf_counter()
    with bench_station(load) as bench:
        for step in range(_STEPS):
            _run(bench, max(1, parts // _STEPS))
            gc.collect()
            resident.append(_resident_mib())
            if not as_json:
                print(f"{(step + 1) * (parts // _STEPS):>9} parts  {resident[-1]:>8.2f} MiB", file=sys.stderr)
    settled = resident[_STEPS // 10 - 1]
    result: dict[str, Any] = {
        "parts": parts,
        "seconds": round(time.perf_counter() - started, 1),
        "resident_mib": [round(value, 2) for value in resident],
        "growth_mib": round(resident[-1] - settled, 2),
    }
    if as_json:
        print(json.dumps(result))
    else:
        print(f"memory growth        {result['growth_mib']:>9.2f} MiB from part {parts // 10} to part {parts}")
    return 0


def _run(bench: BenchStation, count: int) -> None:
    in_hand: collections.deque[Future[Recorded]] = collections.deque()
    for _ in range(count):
        in_hand.append(bench.submit())
        if len(in_hand) >= _IN_HAND:
            in_hand.popleft().result()
    for future in in_hand:
        future.result()
    while bench.station.outbox_pending():
        time.sleep(0.05)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
