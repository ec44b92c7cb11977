"""A station to measure: frames in memory, a durable store in a new folder, a broker and an MES in processes of their own.

Rules kept here: what is measured is the station as it ships, with nothing switched off; the MES shares no lock with it. What is
measured on it is left to `bench_line`, `bench_latency` and `bench_memory`.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import paho.mqtt.client as mqtt
from numpy.typing import NDArray
from paho.mqtt.enums import CallbackAPIVersion

from linegate.errors import SettingsError, StationError
from linegate.images import IMAGE_SUFFIXES, read_image
from linegate.infer import Inspector, prepare
from linegate.package import ModelPackage
from linegate.stages import Frame, Image, Part, PixelFormat
from linegate_edge.embedded_broker import embedded_broker
from linegate_edge.message import utc_now
from linegate_edge.records import Capture, Recorded
from linegate_edge.setting_types import VIEW
from linegate_edge.settings import (
    EvidenceSection,
    HttpSection,
    LimitsSection,
    ModelSection,
    MqttSection,
    RecipeSettings,
    ReviewSection,
    StationSection,
    StationSettings,
    ViewSettings,
)
from linegate_edge.station import Station

_TOPIC: Final = "linegate/bench/bench/bench/line"
DEADLINE_S: Final = 60.0
"""Parts that wait in a full queue are not what is measured, so none of them may run into its deadline."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One frame to judge again and again."""

    image: Image
    pixel_format: PixelFormat


@dataclass(frozen=True, slots=True)
class Load:
    """What a benchmark runs: the package, how it is run, and what is kept of the parts.

    `views` frames make a part; of passed parts `evidence_share` keep their frames, in `evidence_format`; `fail_share` of
    the frames fail; `workers` 0 is one a core.

    Raises:
        SettingsError: a share does not lie between 0 and 1.
    """

    model: Path
    workers: int = 0
    views: int = 1
    fail_share: float = 0.05
    evidence_share: float = 0.0
    evidence_format: Literal["png", "jpeg"] = "png"
    frames: Path | None = None

    def __post_init__(self) -> None:
        for name in ("fail_share", "evidence_share"):
            if not 0 <= getattr(self, name) <= 1:
                option = name.replace("_", "-")
                raise SettingsError(f"--{option} must lie between 0 and 1, got {getattr(self, name):g}")


class BenchStation:
    """A running station with frames for it; `prepared` are the same frames as the graph takes them."""

    def __init__(self, load: Load, station: Station, inspector: Inspector, pictures: Sequence[Picture]) -> None:
        self.load, self.station, self.inspector, self.pictures = load, station, inspector, pictures
        self.workers = load.workers or os.cpu_count() or 1
        spec = inspector.package.manifest.input
        self.prepared = [prepare(picture.image, picture.pixel_format, spec)[0] for picture in pictures]
        self._number = 0

    def submit(self, *, wait: bool = True) -> Future[Recorded]:
        """Bring one part before the line, all its views, and return the future of its verdict."""
        self._number += 1
        number, views = self._number, self.load.views
        serial = str(number)
        key = f"bench:{number}" if views > 1 else None
        for index, view in enumerate(view_names(views)):
            picture = self.pictures[(number * views + index) % len(self.pictures)]
            frame = Frame(picture.image, picture.pixel_format, f"{serial}-{index}", view, view, number, utc_now())
            done = self.station.line.submit(Capture(Part(serial, "counter"), frame, key=key), wait=wait)
        return done

    def run_bare(self, frames: int) -> None:
        """Run `frames` prepared frames through the session alone, on as many threads as the line has workers."""
        numbers = iter(range(frames))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                self.inspector.run(self.prepared[number % len(self.prepared)])

        threads = [threading.Thread(target=work) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def view_names(count: int) -> list[str]:
    """Return the names of the views of a benchmark's part."""
    return [VIEW] if count == 1 else [f"view-{index}" for index in range(count)]


@contextlib.contextmanager
def bench_station(load: Load) -> Iterator[BenchStation]:
    """Start a station with broker and MES around it, and yield it.

    Raises:
        LinegateError: the package, the frames or the broker cannot be used.
    """
    inspector = Inspector(ModelPackage.load(load.model))
    pictures = _load(load.frames) if load.frames is not None else _from_package(inspector)
    spec = inspector.package.manifest.input
    prepared = [prepare(picture.image, picture.pixel_format, spec)[0] for picture in pictures]
    threshold = threshold_for([float(inspector.run(pixels)["score"][0]) for pixels in prepared], load.fail_share)
    view = ViewSettings(package=load.model.absolute(), threshold=threshold)
    with (
        tempfile.TemporaryDirectory(prefix="linegate-bench-") as folder,
        embedded_broker() as broker_port,
        _listener(broker_port),
    ):
        station = Station(
            StationSettings(
                station=StationSection(topic=_TOPIC, store=Path(folder), deadline_ms=int(DEADLINE_S * 1e3)),
                model=ModelSection(workers=load.workers or os.cpu_count() or 1),
                recipes={"bench": RecipeSettings(views=dict.fromkeys(view_names(load.views), view))},
                mqtt=MqttSection(port=broker_port),
                evidence=EvidenceSection(passed_share=load.evidence_share, format=load.evidence_format, min_free_mib=0),
                review=ReviewSection(close_share=0),  # or how much is kept would hang on where these frames' scores lie
                http=HttpSection(port=0),
                limits=LimitsSection(queue_frames=16 * load.views),
            )
        )
        station.start()
        try:
            yield BenchStation(load, station, inspector, pictures)
        finally:
            station.stop()


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return median and 99th percentile."""
    return {"p50": round(float(np.percentile(values, 50)), 3), "p99": round(float(np.percentile(values, 99)), 3)}


def threshold_for(scores: list[float], fail_share: float) -> float:
    """Return the threshold at which about `fail_share` of the frames fail."""
    ranked = sorted(scores, reverse=True)
    failing = round(fail_share * len(ranked))
    if failing == 0:
        return ranked[0] + 1.0
    return ranked[failing - 1]


def _from_package(inspector: Inspector) -> list[Picture]:
    """Return the package's own frames, and their mirror images, as what a camera would send."""
    pixels: NDArray[np.uint8] = inspector.package.parity_samples.pixels
    variants = itertools.chain(pixels, pixels[:, ::-1], pixels[:, :, ::-1], pixels[:, ::-1, ::-1])
    return [Picture(np.ascontiguousarray(image), PixelFormat.RGB8) for image in variants]


def _load(folder: Path) -> list[Picture]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:200]
    if not paths:
        raise SettingsError(f"--frames {folder}: no pictures there")
    return [Picture(*read_image(path)[:2]) for path in paths]


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
