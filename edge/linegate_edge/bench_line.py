"""`linegate bench line`: what the chain around the model costs, measured in one run.

Bare: as many threads as workers call `session.run` on frames already prepared. Chain: the same frames, as uint8 images in
memory, through the line, the durable store and the publisher, until a broker has acknowledged the last. The two take turns
in rounds, so that a noisy machine is unfair to both; the ratio is the median over the rounds. CPU time beside inference is that
of the station's process for a part, less that of bare inference of its frames.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from concurrent.futures import Future
from typing import Any, Final

from linegate.errors import StationError
from linegate_edge.bench_station import BenchStation, Load, bench_station, percentiles
from linegate_edge.records import Recorded

_ROUNDS: Final = 5
_ACK_PATIENCE_S: Final = 60.0


def run_bench_line(load: Load, *, parts: int, as_json: bool) -> int:
    """Measure, print, and return the exit status.

    Raises:
        LinegateError: the package, the frames or the broker cannot be used.
    """
    with bench_station(load) as bench:
        parts_per_round = max(bench.workers, parts // _ROUNDS)
        frames = parts_per_round * load.views
        run_chain(bench, bench.workers * 4)  # the first parts open connections and fill caches
        bare, chain, cpu_ms, recorded = [], [], [], []
        for _ in range(_ROUNDS):
            wall, cpu = time.perf_counter(), time.process_time()
            bench.run_bare(frames)
            bare.append(frames / (time.perf_counter() - wall))
            bare_cpu_s = time.process_time() - cpu
            cpu = time.process_time()
            seconds, done = run_chain(bench, parts_per_round)
            cpu_ms.append((time.process_time() - cpu - bare_cpu_s) * 1e3 / parts_per_round)
            chain.append(frames / seconds)
            recorded += done
        result = _result(bench, bare, chain, cpu_ms, recorded)
    if as_json:
        print(json.dumps(result))
    else:
        _print_table(result)
    return 0


def run_chain(bench: BenchStation, count: int) -> tuple[float, list[Recorded]]:
    """Return the seconds from the first frame to the last acknowledgement of `count` parts, and what was recorded."""
    live = bench.station.live
    published_before = live.published_count
    started = time.perf_counter()
    futures: list[Future[Recorded]] = [bench.submit() for _ in range(count)]
    recorded = [future.result() for future in futures]
    deadline = time.perf_counter() + _ACK_PATIENCE_S
    while live.published_count - published_before < count:
        if time.perf_counter() > deadline:
            raise StationError(f"the broker did not acknowledge all verdicts within {_ACK_PATIENCE_S:g} s")
        time.sleep(0.001)
    return time.perf_counter() - started, recorded


def _result(
    bench: BenchStation, bare: list[float], chain: list[float], cpu_ms: list[float], recorded: list[Recorded]
) -> dict[str, Any]:
    messages = [entry.message for entry in recorded]
    stages: dict[str, list[float]] = {}
    for message in messages:
        for stage, milliseconds in message["latency_ms"].items():
            stages.setdefault(stage, []).append(milliseconds)
    latency = {stage: percentiles(values) for stage, values in stages.items()}
    for stage in ("commit", "publish"):
        latency[stage] = {"mean": round(bench.station.metrics.mean_stage_seconds(stage) * 1e3, 3)}
    manifest = bench.inspector.package.manifest
    with_evidence = sum(any(view["image_sha256"] for view in message["views"]) for message in messages)
    return {
        "package": manifest.name,
        "size_wh": list(manifest.input.size_wh),
        "workers": bench.workers,
        "views": bench.load.views,
        "parts": len(recorded),
        "bare_per_second": round(statistics.median(bare), 1),
        "chain_per_second": round(statistics.median(chain), 1),
        "ratio": round(statistics.median(after / before for before, after in zip(bare, chain, strict=True)), 3),
        "cpu_ms_beside_inference": round(statistics.median(cpu_ms), 3),
        "latency_ms": latency,
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "failed_share": round(sum(message["decision"] == "fail" for message in messages) / len(messages), 3),
        "evidence_share": round(with_evidence / len(messages), 3),
    }


def _print_table(result: dict[str, Any]) -> None:
    print(
        f"package {result['package']}, {result['size_wh'][0]} × {result['size_wh'][1]}, {result['workers']} workers, ", end=""
    )
    print(f"{result['views']} views a part")
    print(f"bare session.run     {result['bare_per_second']:>9.1f} frames/s")
    print(f"whole chain          {result['chain_per_second']:>9.1f} frames/s   ratio {result['ratio']:.3f} (median of rounds)")
    print(f"CPU beside inference {result['cpu_ms_beside_inference']:>9.3f} ms a part")
    print(f"peak memory          {result['peak_rss_mib']:>9.1f} MiB")
    for stage, values in result["latency_ms"].items():
        print(f"  {stage:<18} " + "  ".join(f"{name} {value:.3f} ms" for name, value in values.items()))
