"""`linegate bench line`: what the chain around the model costs, measured in one run.

Bare: as many threads as workers call `session.run` on frames already prepared. Chain: the same frames, as uint8 images in
memory, through the line, the durable store and the publisher, until a broker has acknowledged the last. The two take turns
in rounds, so that a noisy machine is unfair to both; the ratio is the median over the rounds.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from linegate.errors import SettingsError, StationError
from linegate.images import IMAGE_SUFFIXES, read_image
from linegate.infer import Inspector, prepare
from linegate.package import ModelPackage
from linegate.stages import Frame, Image, Part, PixelFormat
from linegate_edge.embedded_broker import embedded_broker
from linegate_edge.message import utc_now
from linegate_edge.records import Capture, Recorded
from linegate_edge.settings import (
    VIEW,
    EvidenceSection,
    HttpSection,
    ModelSection,
    MqttSection,
    RecipeSection,
    StationSection,
    StationSettings,
)
from linegate_edge.station import Station

_TOPIC: Final = "linegate/bench/bench/bench/line"
_ROUNDS: Final = 5
_ACK_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    image: Image
    pixel_format: PixelFormat


def run_bench_line(model: Path, *, parts: int, workers: int, fail_share: float, frames: Path | None, as_json: bool) -> int:
    """Measure, print, and return the exit status.

    Raises:
        LinegateError: the package, the frames or the broker cannot be used.
    """
    if not 0 <= fail_share <= 1:
        raise SettingsError(f"--fail-share must lie between 0 and 1, got {fail_share:g}")
    workers = workers or os.cpu_count() or 1
    inspector = Inspector(ModelPackage.load(model))
    pictures = _load(frames) if frames is not None else _from_package(inspector)
    spec = inspector.package.manifest.input
    prepared = [prepare(picture.image, picture.pixel_format, spec)[0] for picture in pictures]
    threshold = _threshold_for([float(inspector.run(pixels)["score"][0]) for pixels in prepared], fail_share)
    parts_per_round = max(workers, parts // _ROUNDS)
    with (
        tempfile.TemporaryDirectory(prefix="linegate-bench-") as folder,
        embedded_broker() as broker_port,
        _listener(broker_port),
    ):
        station = Station(
            StationSettings(
                station=StationSection(topic=_TOPIC, store=Path(folder)),
                model=ModelSection(package=model.absolute(), workers=workers),
                recipe=RecipeSection(name="bench", threshold=threshold),
                mqtt=MqttSection(port=broker_port),
                evidence=EvidenceSection(passed_share=0, min_free_mib=0),
                http=HttpSection(port=0),
            )
        )
        station.start()
        try:
            _run_chain(station, pictures, workers * 4)  # the first parts open connections and fill caches
            bare, chain, recorded = [], [], []
            for _ in range(_ROUNDS):
                bare.append(parts_per_round / _run_bare(inspector, prepared, parts_per_round, workers))
                seconds, done = _run_chain(station, pictures, parts_per_round)
                chain.append(parts_per_round / seconds)
                recorded += done
            result = _result(bare, chain, recorded, station)
        finally:
            station.stop()
    package = inspector.package.manifest
    result |= {"package": package.name, "size_wh": list(package.input.size_wh), "workers": workers, "parts": len(recorded)}
    if not as_json:
        _print_table(result)
    else:
        print(json.dumps(result))
    return 0


def _run_bare(inspector: Inspector, prepared: Sequence[Any], count: int, workers: int) -> float:
    """Return the seconds that `workers` threads take to run `count` prepared frames."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            inspector.run(prepared[number % len(prepared)])

    threads = [threading.Thread(target=work) for _ in range(workers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def _run_chain(station: Station, pictures: Sequence[_Picture], count: int) -> tuple[float, list[Recorded]]:
    """Return the seconds from the first frame to the last acknowledgement of `count` parts, and what was recorded."""
    published_before = station.live.snapshot()["published"]
    started = time.perf_counter()
    futures: list[Future[Recorded]] = []
    for number, picture in zip(range(count), itertools.cycle(pictures)):
        frame = Frame(picture.image, picture.pixel_format, str(number), "memory", VIEW, number, utc_now())
        futures.append(station.line.submit(Capture(Part(str(number), "counter"), frame)))
    recorded = [future.result() for future in futures]
    deadline = time.perf_counter() + _ACK_PATIENCE_S
    while station.live.published_count - published_before < count:
        if time.perf_counter() > deadline:
            raise StationError(f"the broker did not acknowledge all verdicts within {_ACK_PATIENCE_S:g} s")
        time.sleep(0.001)
    return time.perf_counter() - started, recorded


def _result(bare: list[float], chain: list[float], recorded: list[Recorded], station: Station) -> dict[str, Any]:
    messages = [entry.message for entry in recorded]
    stages: dict[str, list[float]] = {}
    for message in messages:
        for stage, milliseconds in message["latency_ms"].items():
            stages.setdefault(stage, []).append(milliseconds)
    latency = {stage: _percentiles(values) for stage, values in stages.items()}
    for stage in ("commit", "publish"):
        latency[stage] = {"mean": round(station.metrics.mean_stage_seconds(stage) * 1e3, 3)}
    return {
        "bare_per_second": round(statistics.median(bare), 1),
        "chain_per_second": round(statistics.median(chain), 1),
        "ratio": round(statistics.median(after / before for before, after in zip(bare, chain, strict=True)), 3),
        "latency_ms": latency,
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "failed_share": round(sum(message["decision"] == "fail" for message in messages) / len(messages), 3),
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    if len(values) == 1:
        return {"p50": values[0], "p99": values[0]}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3)}


def _from_package(inspector: Inspector) -> list[_Picture]:
    """Return the package's own frames, and their mirror images, as what a camera would send."""
    pixels = inspector.package.parity_samples.pixels
    variants = itertools.chain(pixels, pixels[:, ::-1], pixels[:, :, ::-1], pixels[:, ::-1, ::-1])
    return [_Picture(np.ascontiguousarray(image), PixelFormat.RGB8) for image in variants]


def _load(folder: Path) -> list[_Picture]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:200]
    if not paths:
        raise SettingsError(f"--frames {folder}: no pictures there")
    return [_Picture(*read_image(path)[:2]) for path in paths]


def _threshold_for(scores: list[float], fail_share: float) -> float:
    """Return the threshold at which about `fail_share` of the frames fail."""
    ranked = sorted(scores, reverse=True)
    failing = round(fail_share * len(ranked))
    if failing == 0:
        return ranked[0] + 1.0
    return ranked[failing - 1]


@contextlib.contextmanager
def _listener(port: int) -> Iterator[None]:
    """Hear the verdicts, for without a subscriber no broker acknowledges them as success.

    It is a process of its own: the station's threads do not share Python's lock with an MES either.
    """
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_listen, args=(port, ready), daemon=True)
    process.start()
    try:
        if not ready.wait(30):
            raise StationError("the benchmark's subscriber did not reach the broker within 30 s")
        yield
    finally:
        process.terminate()
        process.join()


def _listen(port: int, ready: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark itself ends this process
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda client, *_: client.subscribe(f"{_TOPIC}/#", qos=0)
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port, keepalive=3600)
    while not subscribed.is_set():
        client.loop(0.1)
    connection = client.socket()
    assert connection is not None
    connection.setblocking(True)
    ready.set()
    # What an MES does with a verdict is not the station's cost: at QoS 0 it is enough to take the bytes.
    while connection.recv(1 << 16):
        pass


def _print_table(result: dict[str, Any]) -> None:
    print(f"package {result['package']}, {result['size_wh'][0]} × {result['size_wh'][1]}, {result['workers']} workers")
    print(f"bare session.run     {result['bare_per_second']:>9.1f} frames/s")
    print(f"whole chain          {result['chain_per_second']:>9.1f} parts/s   ratio {result['ratio']:.3f} (median of rounds)")
    print(f"peak memory          {result['peak_rss_mib']:>9.1f} MiB")
    for stage, values in result["latency_ms"].items():
        print(f"  {stage:<18} " + "  ".join(f"{name} {value:.3f} ms" for name, value in values.items()))
