"""What `linegate soak` puts around a station: a broker to break, cameras that never give up, an MES that counts.

Rules kept here: broker and station are processes of their own, killed and frozen by signals, as a plant's would be; a camera
sends a part again until somebody answers for it; nothing here knows what faults will come.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from linegate.errors import StationError
from linegate_edge.message import topics

TOPIC: Final = "linegate/soak/soak/soak/line"
_START_TIMEOUT_S: Final = 30.0
_RETRY_S: Final = 0.05
_ROOMY: Final = "4g"
_ANSWER_TIMEOUT_S: Final = 20.0


class Process:
    """A program that is started, frozen, woken and killed; its output goes into a file."""

    def __init__(self, command: Sequence[str], log: Path, port: int) -> None:
        self._command, self._log, self.port = command, log, port
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it accepts connections.

        Raises:
            StationError: it ends, or does not listen in time.
        """
        self._output = self._log.open("ab")
        environment = os.environ | {"PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(self._command, stdout=self._output, stderr=self._output, env=environment)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise StationError(f"{self._command[0]} does not run on port {self.port}: see {self._log}")
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it by SIGKILL, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None

    def end(self, timeout_s: float) -> int:
        """Ask it to end by SIGTERM, and return its exit status.

        Raises:
            StationError: it does not end in time.
        """
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise StationError(f"the station did not stop within {timeout_s:g} s: see {self._log}") from error
        finally:
            self.kill()


class Broker(Process):
    """Mosquitto, with its state in a folder.

    Raises:
        StationError: it is not installed.
    """

    def __init__(self, folder: Path) -> None:
        # Debian puts it where only root looks.
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise StationError("linegate soak needs Mosquitto as the broker to break: apt install mosquitto")
        folder.mkdir()
        self._folder, self._settings = folder, folder / "mosquitto.conf"
        port = free_port()
        super().__init__([program, "-c", str(self._settings)], folder / "mosquitto.log", port)
        self.allow(True)

    def allow(self, everybody: bool) -> None:
        """Let everybody in from the next start on, or nobody."""
        user = "user root\n" if os.geteuid() == 0 else ""
        self._settings.write_text(
            f"listener {self.port} 127.0.0.1\n{user}allow_anonymous {'true' if everybody else 'false'}\npersistence true\n"
            f"persistence_location {self._folder}/\nautosave_on_changes true\nautosave_interval 1\nset_tcp_nodelay true\n"
            "max_queued_messages 0\nmax_inflight_messages 1000\n",
            encoding="utf-8",
        )

    def lose_state(self) -> None:
        """Delete what it has kept; it must not run."""
        (self._folder / "mosquitto.db").unlink(missing_ok=True)


def station_process(settings: Path, log: Path, port: int) -> Process:
    """Return a station as a user starts it."""
    return Process([sys.executable, "-m", "linegate.cli", "run", str(settings)], log, port)


class Mes:
    """An MES with a session of its own, which counts the verdicts that arrive."""

    def __init__(self, port: int) -> None:
        self._lock = threading.Lock()
        self._arrivals: Counter[str] = Counter()
        self._sequences: set[int] = set()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="linegatesoakmes", protocol=mqtt.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe(topics(TOPIC)["verdict"], qos=1)
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        keep = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        keep.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=keep)
        self._client.loop_start()

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        verdict = json.loads(message.payload)
        with self._lock:
            self._arrivals[verdict["verdict_id"]] += 1
            self._sequences.add(verdict["sequence"])

    @property
    def received(self) -> set[str]:
        """The ids of the verdicts that arrived."""
        with self._lock:
            return set(self._arrivals)

    @property
    def sequences(self) -> set[int]:
        """Their sequence numbers."""
        with self._lock:
            return set(self._sequences)

    @property
    def duplicates(self) -> int:
        """How many messages were repeats."""
        with self._lock:
            return sum(self._arrivals.values()) - len(self._arrivals)

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()


class PushCamera(threading.Thread):
    """Sends each part by HTTP until the station has answered for it; `answers` are the verdict ids by serial."""

    def __init__(self, port: int, pictures: Sequence[bytes], pause_s: float) -> None:
        super().__init__(name="push-camera", daemon=True)
        self._port, self._pictures, self._pause_s = port, pictures, pause_s
        self._stopping = threading.Event()
        self.torn = threading.Event()
        """While set, every second picture is sent torn."""
        self.answers: dict[str, str] = {}
        self.wrong: list[str] = []

    def run(self) -> None:
        """Send parts until stopped; the one in hand is brought to its end."""
        for number in itertools.count(1):
            if self._stopping.wait(self._pause_s):
                return
            picture = self._pictures[number % len(self._pictures)]
            torn = self.torn.is_set() and number % 2 == 0
            self._send(f"push-{number:07d}", picture[: len(picture) // 2] if torn else picture, torn)

    def stop(self) -> None:
        """End after the part in hand."""
        self._stopping.set()

    def _send(self, serial: str, picture: bytes, torn: bool) -> None:
        headers = {"Content-Type": "image/png", "Idempotency-Key": serial}
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_TIMEOUT_S)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("POST", f"/frames?serial={serial}", picture, headers)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status == 200:
                    verdict = json.loads(body)
                    self.answers[serial] = verdict["verdict_id"]
                    if torn and verdict["decision"] != "undecided":
                        self.wrong.append(f"{serial}: torn, and yet {verdict['decision']}")
                    return
            time.sleep(_RETRY_S)


class FolderCamera(threading.Thread):
    """Writes each part as a file; the folder can vanish, as a network drive does, and come back."""

    def __init__(self, folder: Path, pictures: Sequence[bytes], pause_s: float) -> None:
        super().__init__(name="folder-camera", daemon=True)
        folder.mkdir()
        self._folder, self._pictures, self._pause_s = folder, pictures, pause_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.serials: list[str] = []

    def run(self) -> None:
        """Write files until stopped."""
        for number in itertools.count(1):
            if self._stopping.wait(self._pause_s):
                return
            serial = f"file-{number:07d}"
            with self._lock:
                temporary = self._folder / f".{serial}.png"
                temporary.write_bytes(self._pictures[number % len(self._pictures)])
                temporary.rename(self._folder / f"{serial}.png")
            self.serials.append(serial)

    def stop(self) -> None:
        """End after the file in hand."""
        self._stopping.set()

    def unplugged(self, seconds: float, wait: Callable[[float], object]) -> None:
        """Take the folder away for a while."""
        away = self._folder.with_name(f"{self._folder.name}-away")
        with self._lock:
            self._folder.rename(away)
            try:
                wait(seconds)
            finally:
                away.rename(self._folder)


class OwnDisk:
    """A file system of its own for the station's store, which can be made full and roomy again; `why_not` where there is none.

    It is a tmpfs, whose limit is moved: a full one needs no more memory than what lies in it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.why_not = self._mount(f"size={_ROOMY}", "tmpfs")

    def fill(self) -> None:
        """Leave no room: the limit becomes what is used."""
        status = os.statvfs(self._folder)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        self._mount(f"remount,size={max(used, status.f_frsize)}")

    def clear(self) -> None:
        """Make room again."""
        self._mount(f"remount,size={_ROOMY}")

    def close(self) -> None:
        """Unmount."""
        if self.why_not is None:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=False, capture_output=True)

    def _mount(self, options: str, *source: str) -> str | None:
        kind = ["-t", *source, "-o", options, *source, str(self._folder)] if source else ["-o", options, str(self._folder)]
        try:
            done = subprocess.run(["mount", *kind], check=False, capture_output=True, text=True)
        except OSError as error:
            return str(error)
        return None if done.returncode == 0 else done.stderr.strip() or "mount failed"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
