"""Shared by all tests: a small real model package, pictures, a real broker, stations on free ports."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import httpx
import numpy as np
import onnx
import onnxruntime
import paho.mqtt.client as mqtt
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from linegate.package import (
    CARD_FILE,
    MODEL_FILE,
    PARITY_FILE,
    Dataset,
    InputSpec,
    Manifest,
    ModelPackage,
    Outputs,
    OutputSpec,
    Parity,
    ParitySamples,
    Thresholds,
    Training,
    write_package,
)
from linegate.stages import Frame, Part, PixelFormat, Reason
from linegate_edge.records import Capture, Recorded
from linegate_edge.review.access.client import COOKIE
from linegate_edge.review.audit import SYSTEM
from linegate_edge.settings import load_station
from linegate_edge.station import Station

SIZE = 64
TOPIC = "acme/graz/press/line-1/tiles"


def require(program: str) -> str:
    """Return the path of a system program; without it skip on a user's machine, fail in CI."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        reason = f"{program} is not installed: apt-get install {program}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


_PORTS = itertools.cycle(random.sample(range(20_000, 32_000), 12_000))


def free_port() -> int:
    """Return a port of loopback that is free and that no server with port 0 will be given before it is used."""
    for port in itertools.islice(_PORTS, 1000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port of 20,000 to 32,000 is free on loopback")


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0, what: str = "") -> None:
    """Return as soon as the condition holds.

    Raises:
        AssertionError: it did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain{': ' + what if what else ''}")
        time.sleep(0.02)


def spot_model(size: int = SIZE) -> bytes:
    """Return a small real ONNX graph that sees bright spots: map = 4 × 4 means / 255, score = its maximum."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "channel_axis"], ["grey"], keepdims=0),
        helper.make_node("Reshape", ["grey", "pool_shape"], ["planes"]),
        helper.make_node("AveragePool", ["planes"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Div", ["pooled", "full_scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "map_shape"], ["map"]),
        helper.make_node("ReduceMax", ["map", "map_axes"], ["score"], keepdims=0),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array([3], np.int64), "channel_axis"),
        onnx.numpy_helper.from_array(np.array([1, 1, size, size], np.int64), "pool_shape"),
        onnx.numpy_helper.from_array(np.array([1, size // 4, size // 4], np.int64), "map_shape"),
        onnx.numpy_helper.from_array(np.array([1, 2], np.int64), "map_axes"),
        onnx.numpy_helper.from_array(np.array(255, np.float32), "full_scale"),
    ]
    graph = helper.make_graph(
        nodes,
        "spots",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, size, size, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, size // 4, size // 4]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_spot_package(location: Path, *, threshold: float = 0.8, name: str = "spots") -> ModelPackage:
    """Write a package of the spot model: a picture with a spot brighter than `threshold` fails."""
    model = spot_model()
    frames = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = [session.run(["score", "map"], {"pixels": frame[np.newaxis]}) for frame in frames]
    parity = ParitySamples(
        frames, np.concatenate([score for score, _ in outputs]), np.concatenate([maps for _, maps in outputs])
    )
    manifest = Manifest(
        name=name,
        version="1.0.0",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        input=InputSpec(size_wh=(SIZE, SIZE)),
        outputs=Outputs(
            score=OutputSpec(name="score", shape=(1,), meaning="brightest spot, 0 to 1"),
            map=OutputSpec(name="map", shape=(1, SIZE // 4, SIZE // 4), meaning="brightness, 0 to 1"),
        ),
        thresholds=Thresholds(
            score=threshold, map=threshold, set_by="test", set_at=datetime(2026, 1, 1, tzinfo=UTC), calibration={}
        ),
        dataset=Dataset(name="spots", digest="0" * 64, licence="CC0-1.0", source="generated", split={}),
        training=Training(settings={}, seed=0, code_version="test", libraries={}),
        metrics={},
        parity=Parity(score_tolerance=1e-4, map_tolerance=1e-4),
        files={MODEL_FILE: "0" * 64, PARITY_FILE: "0" * 64, CARD_FILE: "0" * 64},
    )
    files = {MODEL_FILE: model, PARITY_FILE: parity.to_bytes(), CARD_FILE: b"# spots\n\nSees bright spots.\n"}
    return write_package(location, manifest, files)


def spot_picture(*, defect: bool, seed: int = 0, size_wh: tuple[int, int] = (SIZE, SIZE)) -> NDArray[np.uint8]:
    """Return a dark grey picture, uint8 (H, W); a defective one has a white spot."""
    width, height = size_wh
    rng = np.random.default_rng(seed)
    picture = rng.integers(40, 120, (height, width), dtype=np.uint8)
    if defect:
        x, y = rng.integers(0, width - width // 4), rng.integers(0, height - height // 4)
        picture[y : y + height // 4, x : x + width // 4] = 255
    return picture


def encode(picture: NDArray[np.uint8] | Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """Return a picture as the bytes of a file."""
    target = io.BytesIO()
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(target, image_format, **options)
    return target.getvalue()


GREY_PICTURE = Image.fromarray(spot_picture(defect=False, size_wh=(80, 64)))
COLOUR_PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8))


def _cv2_bytes(suffix: str, pixels: NDArray[np.uint16]) -> bytes:
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


_SIXTEEN_GREY = np.random.default_rng(1).integers(0, 65536, (64, 80), dtype=np.uint16)
_SIXTEEN_COLOUR = np.random.default_rng(1).integers(0, 65536, (64, 80, 3), dtype=np.uint16)

BAD_PICTURES: dict[str, tuple[bytes, Reason]] = {
    "zero bytes": (b"", Reason.IMAGE_EMPTY),
    "no picture": (b"GET / HTTP/1.1", Reason.IMAGE_UNREADABLE),
    "another format": (encode(GREY_PICTURE, "GIF"), Reason.IMAGE_UNREADABLE),
    "JPEG torn in the middle with an end mark": (encode(COLOUR_PICTURE, "JPEG")[:2000] + b"\xff\xd9", Reason.IMAGE_TRUNCATED),
    "progressive JPEG torn with an end mark": (
        encode(COLOUR_PICTURE, "JPEG", progressive=True)[:2000] + b"\xff\xd9",
        Reason.IMAGE_TRUNCATED,
    ),
    "JPEG with a hole": (
        encode(COLOUR_PICTURE, "JPEG")[:1500] + encode(COLOUR_PICTURE, "JPEG")[2000:],
        Reason.IMAGE_TRUNCATED,
    ),
    "truncated JPEG": (encode(COLOUR_PICTURE, "JPEG")[:900], Reason.IMAGE_TRUNCATED),
    "truncated PNG": (encode(COLOUR_PICTURE, "PNG")[:900], Reason.IMAGE_TRUNCATED),
    "16-bit grey PNG": (_cv2_bytes(".png", _SIXTEEN_GREY), Reason.IMAGE_FORMAT),
    "16-bit colour PNG": (_cv2_bytes(".png", _SIXTEEN_COLOUR), Reason.IMAGE_FORMAT),
    "16-bit grey TIFF": (_cv2_bytes(".tif", _SIXTEEN_GREY), Reason.IMAGE_FORMAT),
    "16-bit colour TIFF": (_cv2_bytes(".tif", _SIXTEEN_COLOUR), Reason.IMAGE_FORMAT),
    "16-bit PGM": (_cv2_bytes(".pgm", _SIXTEEN_GREY), Reason.IMAGE_FORMAT),
    "16-bit PPM": (_cv2_bytes(".ppm", _SIXTEEN_COLOUR), Reason.IMAGE_FORMAT),
    "palette": (encode(COLOUR_PICTURE.convert("P"), "PNG"), Reason.IMAGE_FORMAT),
    "1-bit": (encode(GREY_PICTURE.convert("1"), "PNG"), Reason.IMAGE_FORMAT),
    "alpha": (encode(COLOUR_PICTURE.convert("RGBA"), "PNG"), Reason.IMAGE_FORMAT),
    "grey with alpha": (encode(GREY_PICTURE.convert("LA"), "PNG"), Reason.IMAGE_FORMAT),
    "transparent colour": (encode(COLOUR_PICTURE, "PNG", transparency=(0, 0, 0)), Reason.IMAGE_FORMAT),
    "CMYK": (encode(COLOUR_PICTURE.convert("CMYK"), "JPEG"), Reason.IMAGE_FORMAT),
    "1 × 1": (encode(Image.new("L", (1, 1))), Reason.IMAGE_TOO_SMALL),
    "100 megapixels": (encode(Image.new("L", (10_000, 10_000))), Reason.IMAGE_TOO_LARGE),
    "800 megapixels": (encode(Image.new("1", (40_000, 20_000))), Reason.IMAGE_TOO_LARGE),
}


@pytest.fixture(scope="session")
def spot_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small real model package; do not change it."""
    return write_spot_package(tmp_path_factory.mktemp("package") / "spots").location


class Mosquitto:
    """A real broker on loopback whose state survives `kill -9`, as the tests of durability need it."""

    def __init__(self, folder: Path, port: int, extra: str = "allow_anonymous true") -> None:
        self.port, self._program = port, require("mosquitto")
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "mosquitto.log"
        self._settings = folder / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        self._settings.write_text(
            f"listener {port} 127.0.0.1\n{user}{extra}\npersistence true\npersistence_location {folder}/\n"
            "autosave_on_changes true\nautosave_interval 1\nset_tcp_nodelay true\n"
            "max_queued_messages 0\nmax_inflight_messages 1000\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the broker and return once it accepts connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._settings)], stdout=log, stderr=log)
        wait_until(self._accepts, what=f"mosquitto on port {self.port}")

    def _accepts(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"mosquitto ended: {self._log.read_text(errors='replace')}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """End the broker by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A real Mosquitto, started."""
    broker = Mosquitto(tmp_path / "broker", free_port())
    broker.start()
    yield broker
    broker.kill()


class Mes:
    """An MES that hears everything of a station: a session of its own, kept over the broker's and its own absence."""

    def __init__(self, port: int, topic: str = TOPIC, username: str | None = None, password: str | None = None) -> None:
        self._lock = threading.Lock()
        self._verdicts: list[dict[str, Any]] = []
        self._states: list[dict[str, Any]] = []
        self.properties: list[Any] = []
        self.retained: list[bool] = []
        self._ready = threading.Event()
        self._topic = topic
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"mes-{port}-{topic}".replace("/", "-"), protocol=mqtt.MQTTv5
        )
        if username is not None:
            self._client.username_pw_set(username, password)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.reconnect_delay_set(1, 1)
        keep = Properties(PacketTypes.CONNECT)
        keep.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=keep)
        self._client.loop_start()
        assert self._ready.wait(10), "the broker took no subscription"

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe(f"{self._topic}/vision/v1/#", qos=1)

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        with self._lock:
            role = message.topic.rpartition("/")[2]
            if role == "verdict":
                self._verdicts.append(json.loads(message.payload))
                self.properties.append(message.properties)
                self.retained.append(message.retain)
            elif role == "state":
                self._states.append(json.loads(message.payload))

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """All verdict messages so far, in the order of their arrival, with repeats."""
        with self._lock:
            return list(self._verdicts)

    @property
    def states(self) -> list[dict[str, Any]]:
        """All state messages so far."""
        with self._lock:
            return list(self._states)

    @property
    def sequences(self) -> set[int]:
        """The sequence numbers that arrived."""
        return {verdict["sequence"] for verdict in self.verdicts}

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def mes(mosquitto: Mosquitto) -> Iterator[Mes]:
    """An MES on the real broker."""
    listener = Mes(mosquitto.port)
    yield listener
    listener.close()


def station_toml(
    folder: Path,
    package: Path,
    *,
    broker_port: int,
    http_port: int = 0,
    topic: str = TOPIC,
    store: Path = Path("var"),
    more: str = "",
) -> Path:
    """Write a STATION.toml for tests in `folder` and return its path."""
    path = folder / "STATION.toml"
    path.write_text(
        f'[station]\ntopic = "{topic}"\nstore = "{store}"\n[model]\npackage = "{package}"\n[http]\nport = {http_port}\n'
        f"[mqtt]\nport = {broker_port}\nbackoff_max_s = 1.0\n{more}"
    )
    return path


MakeStation = Callable[..., Station]


@pytest.fixture
def make_station(tmp_path: Path, spot_package: Path) -> Iterator[MakeStation]:
    """Make and start stations in this process; they are stopped at the end.

    Evidence limits are off, for a test's disk may be nearly full: `more` adds to the settings.
    """
    stations: list[Station] = []

    def make(broker_port: int, *, more: str = "[evidence]\nmin_free_mib = 0\n", **settings: Any) -> Station:
        package = settings.pop("package", spot_package)
        path = station_toml(tmp_path, package, broker_port=broker_port, more=more, **settings)
        station = Station(load_station(path))
        station.start()
        stations.append(station)
        return station

    yield make
    for station in stations:
        with contextlib.suppress(RuntimeError):
            if station.line.alive:
                station.stop()


def submit(station: Station, count: int, start: int = 0, defect_every: int = 10) -> list[Future[Recorded]]:
    """Submit spot pictures to a station's line and return the futures of their verdicts."""
    futures = []
    for number in range(start, start + count):
        picture = spot_picture(defect=number % defect_every == 0, seed=number)
        frame = Frame(picture, PixelFormat.MONO8, f"frame-{number}", "test", "main", number, datetime.now(UTC))
        futures.append(station.line.submit(Capture(Part(f"part-{number:05d}", "test"), frame)))
    return futures


AGENT = "linegate-tests"
PASSWORD = "seven words of a song"


class Session(NamedTuple):
    """A login: what the browser keeps, and what its requests carry."""

    secret: str
    csrf: str


def add_user(station: Station, name: str, role: str, password: str = PASSWORD) -> None:
    """Add a user who has chosen this password already."""
    station.access.users.add(SYSTEM, name, role, password)
    with station.reviews.database.change() as db:
        db.execute("UPDATE user SET must_change = 0 WHERE name = ?", (name,))


def open_session(station: Station, name: str, role: str, agent: str = AGENT) -> Session:
    """Log a user of this role in, who is added if not there, and return the secret of his cookie and his CSRF token."""
    if station.access.users.find(name) is None:
        add_user(station, name, role)
    user = station.access.users.find(name)
    assert user is not None
    secret, session = station.access.sessions.open(user, agent, address="127.0.0.1", how="test")
    return Session(secret, session.csrf)


def signed_in(station: Station, name: str = "anna", role: str = "quality") -> httpx.Client:
    """Return a client of a station's API that is logged in as a user of this role, who is added if not there."""
    session = open_session(station, name, role)
    headers = {"User-Agent": AGENT, "X-CSRF-Token": session.csrf}
    return httpx.Client(base_url=station.address, timeout=30, headers=headers, cookies={COOKIE: session.secret})


BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


expect.set_options(timeout=15_000)  # a busy machine draws a page late, and not at all is what would be wrong


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; nothing is downloaded."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=require("chromium"), args=BROWSER_OPTIONS)
        yield launched
        launched.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of."""
    return []
