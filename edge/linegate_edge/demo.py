"""`linegate demo`: the whole of it on one machine, with real photographs that the shipped model never saw in training.

Rules kept here: nothing is simulated but the camera's trigger; photographs go in by HTTP, verdicts come out by MQTT, and
what is counted is what an independent subscriber received. The photographs are those of the package's `split.csv` with
subset `test`, each checked by its SHA-256, half of them good, in an order fixed by a seed.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import io
import json
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from linegate.errors import StationError
from linegate.package import SPLIT_FILE, ModelPackage
from linegate.stages import Decision
from linegate_edge.embedded_broker import embedded_broker
from linegate_edge.message import topics, utc_now
from linegate_edge.settings import (
    EvidenceSection,
    HttpSection,
    ModelSection,
    MqttSection,
    StationSection,
    StationSettings,
)
from linegate_edge.station import Station
from linegate_edge.store import StoreReader

_TOPIC: Final = "linegate/demo/cells/line-1/cell-check"
_PORT: Final = 8080
_PARTS_PER_SECOND: Final = 4.0
_CONNECTIONS: Final = 4
_SEED: Final = 20
_PATIENCE_S: Final = 30.0
_NOTE: Final = (
    "Electroluminescence photographs of solar cells from the ELPV dataset (Buerhop-Lutz et al., 2018; Deitsch et al., "
    "2019, 2021), licence CC BY-NC-SA 4.0. The model saw none of them in training."
)


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph with its truth: `is_defective` by the people who labelled it."""

    serial: str
    path: Path
    is_defective: bool


def demo_package() -> Path:
    """Return where the demo's model package lies: in a wheel beside this module, in a checkout in `models/`."""
    shipped = Path(__file__).parent / "demo_model"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "models" / "elpv"


def find_photographs(package: ModelPackage) -> list[Photograph]:
    """Return the photographs that the package's model never saw, half good and half defective, in a fixed order.

    Raises:
        StationError: the photographs are not installed, or are not those of the package's split.
    """
    spec = find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise StationError("the demo's photographs are not installed: pip install 'linegate[demo]'")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    if package.manifest.dataset.name != "elpv":
        text = f"was trained on '{package.manifest.dataset.name}', the demo streams elpv: choose a package trained on that"
        raise StationError(f"{package.location}: {text}")
    if SPLIT_FILE not in package.files:
        raise StationError(f"{package.location}: has no {SPLIT_FILE}, so nobody knows what it never saw: choose another")
    by_truth: dict[bool, list[Photograph]] = {False: [], True: []}
    for row in csv.DictReader(io.StringIO(package.files[SPLIT_FILE].decode())):
        if row["subset"] != "test" or row["label"] not in ("good", "defect"):
            continue
        path = folder / row["name"]
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise StationError(f"{path}: cannot be read ({error.strerror}): install linegate[demo] again") from error
        if digest != row["sha256"]:
            raise StationError(f"{path}: is not the photograph of the package's split: install linegate[demo] again")
        is_defective = row["label"] == "defect"
        by_truth[is_defective].append(Photograph(path.stem, path, is_defective))
    order = random.Random(_SEED)
    for photographs in by_truth.values():
        photographs.sort(key=lambda photograph: photograph.serial)
        order.shuffle(photographs)
    stream = [photograph for pair in zip(by_truth[False], by_truth[True], strict=False) for photograph in pair]
    if not stream:
        raise StationError(f"{package.location}: its {SPLIT_FILE} names no photograph for the demo: choose another")
    order.shuffle(stream)
    return stream


class Subscriber:
    """Somebody else who listens: its own connection, its own counts, no knowledge of the station."""

    def __init__(self, port: int, truth: dict[str, bool]) -> None:
        self._truth = truth
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self.duplicates = 0
        self.decisions: Counter[str] = Counter()
        self.correct = self.escapes = self.false_rejects = 0
        self.latency_ms: list[float] = []
        self._ready = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="linegate-demo-mes", protocol=mqtt.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe(topics(_TOPIC)["verdict"], qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if not self._ready.wait(10):
            raise StationError("the embedded broker did not take the subscription within 10 s")

    @property
    def received(self) -> int:
        """How many different verdicts arrived."""
        return len(self._seen)

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        now = utc_now()
        verdict = json.loads(message.payload)
        with self._lock:
            if verdict["verdict_id"] in self._seen:
                self.duplicates += 1
                return
            self._seen.add(verdict["verdict_id"])
            decision, is_defective = verdict["decision"], self._truth[verdict["part"]["serial"].partition("#")[0]]
            self.decisions[decision] += 1
            self.correct += decision == (Decision.FAIL if is_defective else Decision.PASS)
            self.escapes += is_defective and decision == Decision.PASS
            self.false_rejects += not is_defective and decision == Decision.FAIL
            captured = datetime.fromisoformat(verdict["time"]["captured"])
            self.latency_ms.append((now - captured).total_seconds() * 1e3)

    def latency_percentiles(self) -> dict[str, float | None]:
        """Return p50 and p99 of captured → received, in milliseconds."""
        with self._lock:
            values = list(self.latency_ms)
        if len(values) < 2:
            return {"p50": values[0] if values else None, "p99": values[0] if values else None}
        percentiles = statistics.quantiles(values, n=100, method="inclusive")
        return {"p50": round(percentiles[49], 2), "p99": round(percentiles[98], 2)}

    def close(self) -> None:
        """Unsubscribe by leaving."""
        self._client.disconnect()
        self._client.loop_stop()


class LineCamera:
    """A simulated line camera: it posts photographs to the station at a rate, or as fast as the station takes them."""

    def __init__(self, port: int, photographs: Sequence[Photograph], parts: int | None, per_second: float | None) -> None:
        self._port, self._photographs, self._per_second = port, photographs, per_second
        self._numbers: Iterator[int] = iter(range(parts)) if parts is not None else iter(range(sys.maxsize))
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._failures: list[str] = []
        self.sent = 0
        self.stopping = threading.Event()
        count = _CONNECTIONS if per_second is None else 1
        self._threads = [threading.Thread(target=self._stream, name=f"camera-{n}", daemon=True) for n in range(count)]

    def start(self) -> None:
        """Start to stream."""
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def finished(self) -> bool:
        """Say whether all parts were sent, or the camera failed."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End after the part in hand.

        Raises:
            StationError: a photograph could not be delivered.
        """
        self.stopping.set()
        for thread in self._threads:
            thread.join(10)
        if self._failures:
            raise StationError(f"the demo's camera failed: {self._failures[0]}")

    def _stream(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            while not self.stopping.is_set():
                with self._lock:
                    number = next(self._numbers, None)
                if number is None:
                    return
                if self._per_second is not None:
                    self.stopping.wait(self._started + number / self._per_second - time.monotonic())
                self._post(connection, number)
        except (OSError, http.client.HTTPException, StationError) as error:
            self._failures.append(f"{type(error).__name__}: {error}")
        finally:
            connection.close()

    def _post(self, connection: http.client.HTTPConnection, number: int) -> None:
        photograph = self._photographs[number % len(self._photographs)]
        lap = number // len(self._photographs)
        serial = photograph.serial if lap == 0 else f"{photograph.serial}#{lap + 1}"
        query = urlencode({"serial": serial, "camera": "line-camera", "part_type": "solar cell"})
        connection.request("POST", f"/frames?{query}", photograph.path.read_bytes(), {"Content-Type": "image/png"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise StationError(f"the station answered {answer.status}: {body[:200]!r}")
        with self._lock:
            self.sent += 1


def run_demo(*, parts: int | None, headless: bool, as_json: bool, port: int | None, model: Path | None) -> int:
    """Run the demo until `parts` were received, or Ctrl-C; return 0 only when received = stored = parts.

    Raises:
        LinegateError: a part of it cannot start; the text says why in one line.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # both end it in good order, also where a shell had Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    package = ModelPackage.load(model or demo_package())
    photographs = find_photographs(package)
    truth = {photograph.serial: photograph.is_defective for photograph in photographs}
    with tempfile.TemporaryDirectory(prefix="linegate-demo-") as folder, embedded_broker() as broker_port:
        subscriber = Subscriber(broker_port, truth)
        station = _make_station(Path(folder), package.location, broker_port, port)
        station.start()
        camera = LineCamera(station.http_port, photographs, parts, None if headless else _PARTS_PER_SECOND)
        print(f"Linegate demo: {len(photographs)} photographs, model {package.reference} on {station.live.provider}")
        print(_NOTE)
        print(f"The station's page: {station.address}   (Ctrl-C ends)", flush=True)
        started = time.monotonic()
        try:
            camera.start()
            _watch(camera, subscriber, station, parts)
        except KeyboardInterrupt:
            print("\nstopping after the part in hand", file=sys.stderr)
        finally:
            seconds = time.monotonic() - started
            try:
                camera.stop()
                _wait_for(lambda: subscriber.received >= camera.sent, _PATIENCE_S)
            finally:
                station.stop()
                subscriber.close()
        return _summarise(Path(folder), station, subscriber, camera.sent if parts is None else parts, seconds, as_json)


def _make_station(folder: Path, package: Path, broker_port: int, port: int | None) -> Station:
    def make(http_port: int) -> Station:
        settings = StationSettings(
            station=StationSection(topic=_TOPIC, store=folder),
            model=ModelSection(package=package.absolute()),
            mqtt=MqttSection(port=broker_port),
            evidence=EvidenceSection(max_gib=1, min_free_mib=64),
            http=HttpSection(port=http_port),
        )
        return Station(settings, _NOTE)

    if port is not None:
        return make(port)
    try:
        return make(_PORT)
    except StationError:
        return make(0)  # the usual port is taken, and nobody asked for it: any other will do


def _watch(camera: LineCamera, subscriber: Subscriber, station: Station, parts: int | None) -> None:
    """Show the counters until all parts were received, the camera has failed, or nothing comes any more."""
    is_terminal = sys.stdout.isatty()
    shown_at = 0.0
    deadline = float("inf")
    while True:
        done = camera.finished and subscriber.received >= (camera.sent if parts is None else parts)
        now = time.monotonic()
        if camera.finished and deadline == float("inf"):
            deadline = now + (_PATIENCE_S if camera.sent == parts else 0.0)
        if done or now > deadline or now - shown_at >= (0.25 if is_terminal else 2.0):
            shown_at = now
            print(_counters(subscriber, station), end="\r" if is_terminal and not done else "\n", flush=True)
        if done or now > deadline:
            return
        time.sleep(0.05)


def _counters(subscriber: Subscriber, station: Station) -> str:
    counts, state = subscriber.decisions, station.live.snapshot()
    accuracy = f"{subscriber.correct / subscriber.received:.1%}" if subscriber.received else "-"
    return (
        f"stored {state['parts']:>6}  published {state['published']:>6}  received {subscriber.received:>6}   "
        f"pass {counts[Decision.PASS]:>5}  fail {counts[Decision.FAIL]:>5}  undecided {counts[Decision.UNDECIDED]:>4}   "
        f"right {accuracy:>6}"
    )


def _summarise(folder: Path, station: Station, subscriber: Subscriber, parts: int, seconds: float, as_json: bool) -> int:
    reader = StoreReader(folder / "linegate.sqlite3")
    stored = reader.verdict_count()
    reader.close()
    received = subscriber.received
    summary = {
        "parts": parts,
        "stored": stored,
        "published": station.live.snapshot()["published"],
        "received": received,
        "duplicates": subscriber.duplicates,
        "passed": subscriber.decisions[Decision.PASS],
        "failed": subscriber.decisions[Decision.FAIL],
        "undecided": subscriber.decisions[Decision.UNDECIDED],
        "accuracy": round(subscriber.correct / received, 4) if received else None,
        "escapes": subscriber.escapes,
        "false_rejects": subscriber.false_rejects,
        "latency_ms": subscriber.latency_percentiles(),
        "parts_per_second": round(received / seconds, 1),
    }
    whole = received == stored == parts
    if as_json:
        print(json.dumps(summary))
    else:
        print(f"{received} verdicts of {parts} parts received, {stored} stored: {'all there' if whole else 'NOT ALL THERE'}")
    return 0 if whole else 1


def _wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
